//! Port-forwarding: what connects to localhost in a pod's network namespace reaches the guest's localhost.

use super::Sandbox;
use super::network::Network;
use crate::host::blocking::blocking;
use crate::host::network::{self, Localhost};
use protocol::ports::{self, ForwardPreamble};
use rustix::net::sockopt::set_socket_linger;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// Most connections of a sandbox at a time; further ones wait.
const MOST: usize = 128;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// How long the guest may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);

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
        loop {
            let permit = free.clone().acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((connection, _)) => {
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
            let mut guest = tokio::time::timeout(PATIENCE, self.dial(&connection)).await??;
            tokio::select! {
                ended = self.0.vm.ended() => Err(io::Error::other(ended.reason)),
                carried = copy_bidirectional_with_sizes(&mut connection, &mut guest, CHUNK, CHUNK) => {
                    carried.map(drop)
                }
            }
        };
        if let Err(error) = forwarded.await {
            tracing::debug!("a forwarded connection: {error}");
            // Whoever connected sees a reset, as where nobody listens, and not an end.
            let _ = set_socket_linger(&connection, Some(Duration::ZERO));
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
