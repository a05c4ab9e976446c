//! A network namespace of the host's, and threads that are in it.

use super::error::NetworkError;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Tells a namespace's kind, `NS_GET_NSTYPE` of ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// A network namespace that is not the host's.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
    identity: (u64, u64),
}

impl Namespace {
    /// Opens the one at `path`. Blocks.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`] or [`NetworkError::Hosts`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source: io::Error| NetworkError::Namespace { path: path.to_owned(), source };
        // What is no namespace may block when it is opened.
        let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = options.map_err(failed)?;
        // SAFETY: the request takes no argument; the descriptor is open.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            let text = "it is no network namespace";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let identity = identity(&file.metadata().map_err(failed)?);
        let own = std::fs::metadata("/proc/self/ns/net").map_err(failed)?;
        if identity == self::identity(&own) {
            return Err(NetworkError::Hosts { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, identity })
    }

    /// That there may be another at its path later is no matter: [`Namespace::again`] tells them apart.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The one at `path` if it is still the one with this identity.
    pub fn again(path: &Path, identity: (u64, u64)) -> Option<Self> {
        Self::open(path).ok().filter(|found| found.identity == identity)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It, open.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether both are the same one.
    pub fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Does `work` on a thread of its own that is in the namespace.
    ///
    /// # Errors
    /// [`NetworkError::Enter`].
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        let entered = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        };
        let done = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, entered)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
        done.map_err(NetworkError::Enter)
    }
}

fn identity(of: &std::fs::Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}
