//! The engine's resolver at 127.0.0.11 of the sandbox's network namespace, for guests whose resolv.conf leads there: the
//! agent listens in the guest, and this asks in the namespace, there and nowhere else.

use super::Sandbox;
use super::network::Network;
use crate::error::Error;
use crate::guest::agent::Agent;
use crate::host::blocking::blocking;
use crate::host::network::{Namespace, resolver};
use crate::oci::bundle::is_bind;
use oci_spec::runtime::Spec;
use protocol::ports::ResolverPreamble;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpSocket, UdpSocket, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most questions of a guest at once; the streams of further ones are closed.
const MOST: usize = 32;

/// How long a guest may take to ask, and the resolver to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may last.
const LONGEST: Duration = Duration::from_secs(120);

/// Most bytes of a resolv.conf that are looked at.
const MOST_BYTES: u64 = 64 << 10;

/// What is known of the resolver.
#[derive(Debug)]
pub(super) struct Resolver {
    /// Of each container that has yet to start: what it has as its resolv.conf, on the host.
    files: Mutex<BTreeMap<String, PathBuf>>,
    /// Where it is, once a container is to have it.
    at: Mutex<Option<Arc<Namespace>>>,
    free: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(MOST));
        Self { files: Mutex::default(), at: Mutex::default(), free }
    }
}

impl Resolver {
    /// Notes which file is to be looked at when the container starts: engines write to it until then.
    pub fn note(&self, id: &str, file: Option<PathBuf>) {
        if let Some(file) = file {
            self.files().insert(id.to_owned(), file);
        }
    }

    /// Forgets a container's file, and gives it.
    pub fn take(&self, id: &str) -> Option<PathBuf> {
        self.files().remove(id)
    }

    /// Notes where it is; whether that was not known.
    fn found(&self, at: &Arc<Namespace>) -> bool {
        let mut known = self.at();
        let is_new = known.is_none();
        known.get_or_insert_with(|| at.clone());
        is_new
    }

    /// Forgets where it is.
    pub fn forget(&self) {
        *self.at() = None;
    }

    fn at(&self) -> MutexGuard<'_, Option<Arc<Namespace>>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the host's a container has as its resolv.conf.
pub(super) fn file_of(spec: &Spec) -> Option<PathBuf> {
    let is_it = |mount: &&oci_spec::runtime::Mount| {
        is_bind(mount) && mount.destination() == Path::new("/etc/resolv.conf")
    };
    spec.mounts().iter().flatten().rfind(is_it)?.source().clone()
}

fn names_it(file: &Path) -> io::Result<bool> {
    if !std::fs::metadata(file)?.is_file() {
        return Ok(false);
    }
    let mut text = Vec::new();
    File::open(file)?.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(resolver::is_named(&String::from_utf8_lossy(&text)))
}

impl Sandbox {
    /// Has the guest listen at 127.0.0.11, port 53, before a container starts whose resolv.conf leads there. A guest that
    /// can't has a line in the log.
    pub(super) async fn serve_resolver(&self, agent: &Agent, id: &str) {
        let Some(file) = self.0.resolver.take(id) else { return };
        let (namespace, interfaces) = match &*self.0.network.lock().await {
            Network::Namespace { namespace, interfaces } => (namespace.clone(), interfaces.clone()),
            Network::Undecided | Network::Loopback => return,
        };
        let looked_at = file.clone();
        let look = move || names_it(&looked_at).map_err(Error::path("read", &looked_at));
        let served = match blocking("read", &file, look).await {
            Ok(false) => return,
            Ok(true) => {
                let at = namespace.clone();
                // It may ask before it answers.
                if self.0.resolver.found(&at) {
                    let allow = move || Ok(resolver::let_ask_others(&at, &interfaces)?);
                    if let Err(error) = blocking("prepare", namespace.path(), allow).await {
                        tracing::warn!("{id}: the resolver can't ask others: {}", error.chain());
                    }
                }
                agent.serve_resolver().await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::warn!("{id}: no resolver at 127.0.0.11: {}", error.chain());
        }
    }

    /// Asks the resolver what the guest asks by this stream, if a container has it.
    pub(super) fn ask_resolver(&self, stream: OwnedFd) {
        let Some(namespace) = self.0.resolver.at().clone() else { return };
        let Ok(permit) = self.0.resolver.free.clone().try_acquire_owned() else { return };
        let sandbox = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = sandbox.0.vm.ended() => {}
                asked = ask(namespace, stream) => if let Err(error) = asked {
                    tracing::debug!("{}: a question to the resolver: {error}", sandbox.id());
                }
            }
            drop(permit);
        });
    }
}

async fn ask(namespace: Arc<Namespace>, stream: OwnedFd) -> io::Result<()> {
    let stream = StdUnixStream::from(stream);
    stream.set_nonblocking(true)?;
    let mut guest = UnixStream::from_std(stream)?;
    let preamble = timeout(PATIENCE, guest.read_u8()).await??;
    match ResolverPreamble::from_byte(preamble) {
        Some(ResolverPreamble::Datagram) => {
            let query = timeout(PATIENCE, message(&mut guest)).await??;
            let answer = timeout(PATIENCE, by_datagram(namespace, &query)).await??;
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(PATIENCE, guest.write_all(&framed)).await?
        }
        Some(ResolverPreamble::Connection) => {
            let made = made(namespace, resolver::tcp).await?;
            let connect = TcpSocket::from_std_stream(made).connect(resolver::ADDRESS);
            let mut connection = timeout(PATIENCE, connect).await??;
            timeout(LONGEST, copy_bidirectional(&mut guest, &mut connection)).await?.map(drop)
        }
        None => Err(io::Error::other(format!("a stream begins with {preamble}"))),
    }
}

/// A message behind its length.
async fn message(guest: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = guest.read_u16().await?;
    let mut message = vec![0; length.into()];
    guest.read_exact(&mut message).await?;
    Ok(message)
}

async fn by_datagram(namespace: Arc<Namespace>, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(made(namespace, resolver::udp).await?)?;
    socket.send(query).await?;
    let mut answer = vec![0; u16::MAX.into()];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

/// A socket in the namespace.
async fn made<T: Send + 'static>(
    namespace: Arc<Namespace>,
    make: impl FnOnce(&Namespace) -> Result<T, crate::host::network::NetworkError> + Send + 'static,
) -> io::Result<T> {
    let path = namespace.path().to_owned();
    let made = blocking("ask the resolver in", &path, move || Ok(make(&namespace)?)).await;
    made.map_err(|error| io::Error::other(error.chain()))
}
