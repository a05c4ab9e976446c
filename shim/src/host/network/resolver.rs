//! The resolver that a container engine has in a network namespace (Docker's, for networks that its user has made): it
//! answers at 127.0.0.11, to who is in the namespace.

use super::error::NetworkError;
use super::namespace::Namespace;
use super::redirect::{self, OWN_PORTS};
use netlink::Client;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

/// Of a resolv.conf that leads to such a resolver.
const IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where it is asked.
pub const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(IP, 53));

/// The ports that programs get who ask for none; of the namespace that the reader is in.
const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Whether a resolv.conf names it.
pub fn is_named(resolv_conf: &str) -> bool {
    resolv_conf.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().and_then(|ip| ip.parse().ok()) == Some(IP)
    })
}

/// A socket to ask it with a datagram; it does not block and hears nobody else. Making it blocks.
///
/// # Errors
/// The system's.
pub fn udp(namespace: &Namespace) -> Result<UdpSocket, NetworkError> {
    let socket = UdpSocket::from(socket(namespace, SocketType::DGRAM)?);
    socket.connect(ADDRESS).map_err(NetworkError::Resolver)?;
    Ok(socket)
}

/// A socket to be connected to it, which does not block. Making it blocks.
///
/// # Errors
/// The system's.
pub fn tcp(namespace: &Namespace) -> Result<TcpStream, NetworkError> {
    socket(namespace, SocketType::STREAM).map(TcpStream::from)
}

/// Lets the resolver itself ask others by these interfaces, which the guest has: what it asks from is from now on a port
/// that guests don't use, and what answers at such a port is not for the guest. Blocks.
///
/// # Errors
/// The system's.
pub fn let_ask_others(namespace: &Namespace, interfaces: &[u32]) -> Result<(), NetworkError> {
    let change = || {
        std::fs::write(PORTS, format!("{OWN_PORTS} {}", u16::MAX))?;
        let mut client = Client::new()?;
        let mut each = interfaces.iter();
        each.try_for_each(|index| redirect::keep_answers_of_resolvers(&mut client, *index))
    };
    namespace.within(change)?.map_err(NetworkError::Resolver)
}

/// It stays in the namespace that it is made in.
fn socket(namespace: &Namespace, kind: SocketType) -> Result<OwnedFd, NetworkError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let made = namespace.within(|| socket_with(AddressFamily::INET, kind, flags, None))?;
    made.map_err(|e| NetworkError::Resolver(io::Error::from(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_named_by_a_line_of_its_own() {
        for text in ["nameserver 127.0.0.11\n", "search a\n nameserver\t127.0.0.11 # engine's\n"] {
            assert!(is_named(text), "{text}");
        }
        for text in [
            "",
            "nameserver 127.0.0.1\n",
            "nameserver 127.0.0.110",
            "# nameserver 127.0.0.11",
            "nameserver",
        ] {
            assert!(!is_named(text), "{text}");
        }
    }
}
