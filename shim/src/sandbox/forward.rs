//! Port-forwarding: what connects to localhost in a pod's network namespace reaches the guest's localhost.

use super::Sandbox;
use super::network::Network;
use crate::host::blocking::blocking;
use crate::host::network::{self, Localhost};
use crate::host::peer::{has_hung_up, is_lost};
use protocol::ports::{self, ForwardPreamble};
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepidle, set_tcp_keepintvl,
};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf,
    copy_bidirectional_with_sizes,
};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// Most connections of a sandbox at a time; further ones are reset.
const MOST: usize = 128;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// How long the guest may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may say nothing before whoever made it is asked whether it is there, and how often after that.
const SILENCE: Duration = Duration::from_secs(30);

/// How often it is seen whether it is.
const LOOK: Duration = Duration::from_secs(5);

/// How long to wait when there are no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Sandbox {
    /// Forwards, while the machine is there, what connects to localhost in the sandbox's network namespace, if it has
    /// one. A host that can't do that has pods without it, and a line in the log.
    pub(super) async fn forward_localhost(&self) {
        let namespace = match &*self.0.network.lock().await {
            Network::Namespace { namespace, .. } => namespace.clone(),
            Network::Undecided | Network::Loopback => return,
        };
        if self.0.forwards.swap(true, Ordering::Relaxed) {
            return;
        }
        let at = namespace.clone();
        let listen = blocking("listen in", namespace.path(), move || Ok(network::listen(&at)?));
        let all = match listen.await {
            Ok(all) => all,
            Err(error) => {
                // The next who asks tries again.
                self.0.forwards.store(false, Ordering::Relaxed);
                return tracing::warn!("no port-forwarding: {}", error.chain());
            }
        };
        let free = Arc::new(Semaphore::new(MOST));
        for localhost in all {
            let (sandbox, free) = (self.clone(), free.clone());
            tokio::spawn(async move {
                tokio::select! {
                    _ = sandbox.0.vm.ended() => {}
                    Err(error) = sandbox.accept(localhost, free) => {
                        tracing::warn!("no port-forwarding: {error}");
                    }
                }
            });
        }
    }

    async fn accept(&self, localhost: Localhost, free: Arc<Semaphore>) -> io::Result<()> {
        let Localhost { listener, link } = localhost;
        let listener = TcpListener::from_std(listener)?;
        let _link = link;
        let mut is_told = false;
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    let Ok(permit) = free.clone().try_acquire_owned() else {
                        if !std::mem::replace(&mut is_told, true) {
                            let id = self.id();
                            tracing::warn!(
                                "sandbox {id}: {MOST} connections are forwarded: no more"
                            );
                        }
                        reset(&connection);
                        continue;
                    };
                    is_told = false;
                    let sandbox = self.clone();
                    tokio::spawn(async move {
                        sandbox.forward(connection).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a connection to forward: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn forward(&self, mut connection: TcpStream) {
        let forwarded = async {
            let guest = tokio::time::timeout(PATIENCE, self.dial(&connection)).await??;
            let mut guest = Guest { stream: guest, is_told_the_end: false };
            keep_asking(&connection)?;
            let watched = connection.as_fd().try_clone_to_owned()?;
            tokio::select! {
                () = gone(watched, LOOK) => Err(io::ErrorKind::ConnectionReset.into()),
                ended = self.0.vm.ended() => Err(io::Error::other(ended.reason)),
                carried = copy_bidirectional_with_sizes(&mut connection, &mut guest, CHUNK, CHUNK) => {
                    carried.map(drop)
                }
            }
        };
        if let Err(error) = forwarded.await {
            tracing::debug!("a forwarded connection: {error}");
            reset(&connection);
        }
    }

    /// Connects to the port of the guest's localhost that the connection is meant for.
    async fn dial(&self, connection: &TcpStream) -> io::Result<UnixStream> {
        let meant = connection.local_addr()?;
        let guest = self.0.vm.connect(ports::FORWARD).await;
        let mut guest = guest.map_err(|error| io::Error::other(error.chain()))?;
        let preamble = ForwardPreamble { port: meant.port(), v6_first: meant.is_ipv6() };
        guest.write_all(&preamble.to_bytes()).await?;
        match guest.read_u8().await? {
            ports::FORWARDED => Ok(guest),
            other => Err(io::Error::other(format!("the guest answered {other}"))),
        }
    }
}

/// Whoever connected sees a reset, as where nobody listens, and not an end.
fn reset(connection: &TcpStream) {
    let _ = set_socket_linger(connection, Some(Duration::ZERO));
}

/// Has the kernel ask whether the other side is there: one that has ended its own direction says nothing when it goes.
fn keep_asking(connection: &TcpStream) -> io::Result<()> {
    set_socket_keepalive(connection, true)?;
    set_tcp_keepidle(connection, SILENCE)?;
    set_tcp_keepintvl(connection, SILENCE)?;
    Ok(())
}

/// Waits until the other side is known to be gone. That it has ended both directions is the copying's to see: there may be
/// something to be carried yet.
async fn gone(connection: OwnedFd, look: Duration) {
    while !is_lost(&connection) {
        tokio::time::sleep(look).await;
    }
}

/// The guest's side of a connection. What is reset there ends here in both directions at once, where one that ends ends in
/// its own first.
struct Guest {
    stream: UnixStream,
    /// That whoever connected has written the last: an end in both directions follows from that.
    is_told_the_end: bool,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let is_end = buffer.filled().len() == before;
        if is_end && !self.is_told_the_end && has_hung_up(&self.stream) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_told_the_end = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream as StdUnixStream;

    /// What is read at the end of a guest's stream that has said so much.
    async fn end(ended: impl FnOnce(StdUnixStream), is_told_the_end: bool) -> io::Result<String> {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut guest = Guest { stream: UnixStream::from_std(ours).unwrap(), is_told_the_end };
        std::io::Write::write_all(&mut theirs, b"words").unwrap();
        let mut said = [0; 5];
        ended(theirs);
        guest.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"words");
        let mut rest = String::new();
        guest.read_to_string(&mut rest).await.map(|_| rest)
    }

    #[tokio::test]
    async fn one_that_has_ended_its_direction_and_goes_is_gone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let mut gone = std::pin::pin!(gone(ours.into(), Duration::from_millis(10)));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut gone).await;
        assert!(early.is_err(), "it may still listen");
        set_socket_linger(&theirs, Some(Duration::ZERO)).unwrap();
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    }

    #[tokio::test]
    async fn an_end_in_both_directions_at_once_is_a_reset() {
        let reset = end(drop, false).await.unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        end(drop, true).await.unwrap();
        let mut kept = None;
        let one_way = |stream: StdUnixStream| {
            stream.shutdown(Shutdown::Write).unwrap();
            kept = Some(stream);
        };
        end(one_way, false).await.unwrap();
    }
}
