//! The resolver of a container engine, at 127.0.0.11 of a container's own network: the engine listens in the network
//! namespace of the host's, which a guest can't reach. The agent listens here, and the host asks it.

use crate::io::forward::carry;
use crate::io::transport::{Stream, Transport};
use protocol::ports::{RESOLVER, ResolverPreamble};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

/// Where it is asked.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// Most questions at once, as the host answers. Further datagrams are dropped, further connections wait.
const MOST: usize = 32;

/// How long the host may take to answer a datagram.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long to wait when there are no more descriptors or no more memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens once it is told to, until the guest ends.
#[derive(Debug)]
pub struct Resolver {
    transport: Transport,
    listening: OnceCell<()>,
}

impl Resolver {
    /// Of a guest whose host is asked so.
    pub fn new(transport: Transport) -> Self {
        Self { transport, listening: OnceCell::new() }
    }

    /// Listens, if it does not yet.
    ///
    /// # Errors
    /// A container has taken the port.
    pub async fn listen(&self) -> io::Result<()> {
        self.listening.get_or_try_init(|| self.listen_at(ADDRESS)).await.copied()
    }

    async fn listen_at(&self, address: SocketAddrV4) -> io::Result<()> {
        let datagrams = UdpSocket::bind(address).await?;
        let connections = TcpListener::bind(address).await?;
        let (transport, free) = (self.transport.clone(), Arc::new(Semaphore::new(MOST)));
        tokio::spawn(answer_datagrams(datagrams, transport.clone(), free.clone()));
        tokio::spawn(answer_connections(connections, transport, free));
        Ok(())
    }
}

async fn answer_datagrams(socket: UdpSocket, transport: Transport, free: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "hearing a question to the resolver");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Who gets no answer asks again.
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
        let (query, socket) = (buffer[..length].to_vec(), Arc::clone(&socket));
        let transport = transport.clone();
        tokio::spawn(async move {
            let answered = async {
                let answer = ask(&transport, &query).await?;
                socket.send_to(&answer, from).await
            };
            match timeout(PATIENCE, answered).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a question to the resolver"),
                Err(_) => tracing::debug!("a question to the resolver has had no answer"),
            }
            drop(permit);
        });
    }
}

/// Asks the host with a datagram's content.
async fn ask(transport: &Transport, query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let host = transport.connect(RESOLVER).await?;
    let head = [&[ResolverPreamble::Datagram.to_byte()][..], &length.to_be_bytes()].concat();
    host.write_all(&[&head, query].concat()).await?;
    let mut length = [0; 2];
    host.read_exact(&mut length).await?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    host.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn answer_connections(listener: TcpListener, transport: Transport, free: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
                let transport = transport.clone();
                tokio::spawn(async move {
                    if let Err(error) = join(connection, &transport).await {
                        tracing::debug!(%error, "a connection to the resolver");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the resolver");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Carries bytes both ways, until the host ends it or both ends do.
async fn join(connection: TcpStream, transport: &Transport) -> io::Result<()> {
    let asking = Stream::new(connection.into_std()?.into())?;
    let host = transport.connect(RESOLVER).await?;
    host.write_all(&[ResolverPreamble::Connection.to_byte()]).await?;
    tokio::select! {
        // What the host has ended has no more answers.
        answered = carry(&host, &asking) => answered,
        Err(error) = carry(&asking, &host) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    /// A resolver at a port of its own, and the host that it asks.
    async fn listening(name: &str) -> (SocketAddrV4, UnixListener) {
        let name = format!("kata-like-resolver-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(format!("{name}-{RESOLVER}")).unwrap();
        let host = UnixListener::bind_addr(&address).unwrap();
        let free = std::net::UdpSocket::bind("127.0.0.11:0").unwrap();
        let address = SocketAddrV4::new(*ADDRESS.ip(), free.local_addr().unwrap().port());
        drop(free);
        Resolver::new(Transport::Unix(name)).listen_at(address).await.unwrap();
        (address, host)
    }

    fn accepted(host: &UnixListener) -> UnixStream {
        let (stream, _) = host.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn a_datagram_is_asked_with_its_length_and_so_answered() {
        let (address, host) = listening("datagram").await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        client.send(b"who").await.unwrap();
        on_a_thread(move || {
            let mut stream = accepted(&host);
            let mut asked = [0; 6];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"u\0\x03who");
            stream.write_all(b"\0\x02me").unwrap();
        })
        .await;
        let mut answer = [0; 16];
        let length = timeout(PATIENCE, client.recv(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer[..length], b"me");
    }

    #[tokio::test]
    async fn a_connection_is_carried_until_the_host_ends_it() {
        let (address, host) = listening("connection").await;
        on_a_thread(move || {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.write_all(b"who").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut stream = accepted(&host);
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).unwrap();
            assert_eq!(asked, b"twho");
            stream.write_all(b"me").unwrap();
            drop(stream);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"me");
        })
        .await;
    }

    #[tokio::test]
    async fn datagrams_beyond_the_most_are_dropped_and_later_ones_answered() {
        let (address, host) = listening("most").await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..MOST {
            client.send(b"who").await.unwrap();
            let asked = host.try_clone().unwrap();
            held.push(on_a_thread(move || accepted(&asked)).await);
        }
        client.send(b"who").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.set_nonblocking(true).unwrap();
        assert_eq!(host.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        // Until the end of one that is answered has been noticed.
        for _ in 0..200 {
            client.send(b"who").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            if host.accept().is_ok() {
                return;
            }
        }
        panic!("nobody is answered any more");
    }
}
