//! Connections to a pod's localhost. What runs in the pod listens in its guest, but engines that forward a port
//! (`kubectl port-forward`) connect to localhost in the pod's network namespace of the host, where nobody does.

use super::error::NetworkError;
use super::namespace::Namespace;
use super::sk_lookup;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

/// One that hears all connections to 127.0.0.1, or to ::1, in a network namespace, whatever their port.
#[derive(Debug)]
pub struct Localhost {
    /// Does not block. The local port of what it accepts is the one that was meant.
    pub listener: TcpListener,
    /// Dropped, it hears its own port alone.
    pub link: OwnedFd,
}

/// Listens in `namespace`, which may have no IPv6, and whose loopback may be down. Other addresses of 127.0.0.0/8 are left to those who use them, an
/// engine's resolver for one. Blocks.
///
/// # Errors
/// The system's; a kernel before 5.9 can't.
pub fn listen(namespace: &Namespace) -> Result<Vec<Localhost>, NetworkError> {
    let bind = |address: IpAddr| namespace.within(|| bind(address));
    let listener = bind(Ipv4Addr::LOCALHOST.into())?.map_err(NetworkError::Localhost)?;
    let mut all = vec![(listener, Ipv4Addr::LOCALHOST.into())];
    if let Ok(listener) = bind(Ipv6Addr::LOCALHOST.into())? {
        all.push((listener, Ipv6Addr::LOCALHOST.into()));
    }
    let hear_all = |(listener, address): (TcpListener, IpAddr)| {
        listener.set_nonblocking(true)?;
        let link = sk_lookup::redirect(namespace.as_fd(), &listener, address)?;
        Ok(Localhost { listener, link })
    };
    let all: io::Result<_> = all.into_iter().map(hear_all).collect();
    all.map_err(NetworkError::Localhost)
}

/// Listens at an address, which need not be there yet: whoever made the namespace may bring its loopback up later.
fn bind(address: IpAddr) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC;
    let any_port = SocketAddr::new(address, 0);
    let socket = match address {
        IpAddr::V4(_) => {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            sockopt::set_ip_freebind(&socket, true)?;
            socket
        }
        IpAddr::V6(_) => {
            let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
            socket
        }
    };
    rustix::net::bind(&socket, &any_port)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// As the standard library's.
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network::testing::Space;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    fn accepted(listener: &TcpListener) -> TcpStream {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
        }
    }

    #[test]
    fn a_loopback_that_comes_up_later_is_heard() {
        let space = Space::new();
        let all = listen(space.namespace()).unwrap();
        assert_eq!(all.len(), 2, "IPv4 and IPv6");
        space.loopback_up();
        for Localhost { listener, .. } in &all {
            let meant = SocketAddr::new(listener.local_addr().unwrap().ip(), 80);
            let _asking = space.within(|_| TcpStream::connect(meant)).unwrap();
            assert_eq!(accepted(listener).local_addr().unwrap(), meant);
        }
    }

    #[test]
    fn every_port_of_localhost_is_heard_and_no_other_address() {
        let space = Space::new();
        space.loopback_up();
        let all = listen(space.namespace()).unwrap();
        assert_eq!(all.len(), 2, "IPv4 and IPv6");
        for Localhost { listener, .. } in &all {
            let ip = listener.local_addr().unwrap().ip();
            for port in [1, 80, 65535] {
                let meant = SocketAddr::new(ip, port);
                let _asking = space.within(|_| TcpStream::connect(meant)).unwrap();
                assert_eq!(accepted(listener).local_addr().unwrap(), meant);
            }
        }
        let others = space.within(|_| TcpStream::connect("127.0.0.11:80")).unwrap_err();
        assert_eq!(others.kind(), io::ErrorKind::ConnectionRefused);
        drop(all);
        let after = space.within(|_| TcpStream::connect("127.0.0.1:80")).unwrap_err();
        assert_eq!(after.kind(), io::ErrorKind::ConnectionRefused);
    }
}
