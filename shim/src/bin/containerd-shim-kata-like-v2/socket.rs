//! A sandbox's socket: found, made and removed by `start`s and servers that may do so at the same time.
//!
//! All of them hold a lock on its directory meanwhile, and a server removes only what is its own: an id is used again
//! as soon as its container is gone, which may be before its server is.

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Until it is dropped nobody else looks for sockets in the directory.
fn lock(socket: &Path) -> anyhow::Result<Flock<File>> {
    let dir = socket.parent().context("the socket has no directory")?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("make {}", dir.display()))?;
    let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| e).context("lock the sockets")
}

/// Whether somebody listens there. Never waits: all sandboxes' starts and ends wait for who holds the lock.
pub fn is_served(path: &Path) -> bool {
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let connected = UnixAddr::new(path).and_then(|address| {
        let client = socket::socket(family, kind, flags, None)?;
        socket::connect(client.as_raw_fd(), &address)
    });
    // As many as may wait for the server to accept them do so already.
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// The sandbox's socket, or `None` if somebody serves it already.
pub fn listen(socket: &Path) -> anyhow::Result<Option<UnixListener>> {
    let _lock = lock(socket)?;
    for _ in 0..2 {
        match UnixListener::bind(socket) {
            Ok(listener) => {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(socket, mode)
                    .with_context(|| format!("chmod {}", socket.display()))?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if is_served(socket) {
                    return Ok(None);
                }
                // Left by a server that was killed.
                let _ = fs::remove_file(socket);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("listen at {}", socket.display()));
            }
        }
    }
    bail!("{} is in the way of a socket", socket.display())
}

/// Removes a socket that nobody serves.
pub fn remove_dead(socket: &Path) {
    if let Ok(_lock) = lock(socket)
        && !is_served(socket)
    {
        let _ = fs::remove_file(socket);
    }
}

/// A server's own socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode; none: it was gone already.
    node: Option<(u64, u64)>,
}

fn node(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

impl Socket {
    /// The one that is there now.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), node: node(path) }
    }

    /// Removes it, if it is still this one: who comes from here on finds no server, and starts another.
    pub fn withdraw(&self) {
        if self.node.is_some()
            && let Ok(_lock) = lock(&self.path)
            && node(&self.path) == self.node
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::Backlog;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_served_socket_is_found_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/s");
        let listener = listen(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap().is_none());
        remove_dead(&path);
        assert!(path.exists(), "somebody serves it");
        drop(listener);
        assert!(listen(&path).unwrap().is_some());
        remove_dead(&path);
        assert!(!path.exists());
    }

    #[test]
    fn an_id_that_is_used_again_meets_no_dying_server_and_keeps_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _dying = listen(&path).unwrap().unwrap();
        let of_dying = Socket::at(&path);
        of_dying.withdraw();
        let _next = listen(&path).unwrap().expect("the dying one is not found");
        of_dying.withdraw();
        assert!(UnixStream::connect(&path).is_ok(), "the next one's socket is still there");
    }

    #[test]
    fn a_server_that_accepts_nobody_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path).unwrap().unwrap();
        socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let waiting = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
        let (done, is_done) = std::sync::mpsc::channel();
        let of_server = path.clone();
        std::thread::spawn(move || {
            let found = listen(&of_server).unwrap();
            remove_dead(&of_server);
            done.send(found.is_none()).unwrap();
        });
        let is_found = is_done.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(is_found, Ok(true));
        assert!(path.exists(), "it is alive");
        drop(waiting);
    }
}
