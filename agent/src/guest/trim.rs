//! What is deleted on a disk that only its container uses goes back to the host, while the container runs.
//!
//! Together, once in a while: by the mount option `discard` ext4 without a journal, as such a disk has, asks the disk and
//! waits for it with each file that is removed. Where nothing is deleted nothing is asked.

use nix::sys::stat::{major, minor};
use nix::sys::statfs::fstatfs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(30);

/// So much has to be free that was not when it was looked at before, or to have been written since the last time, as what
/// comes and goes between two looks is not seen; bytes.
const WORTH: u64 = 16 << 20;

/// What is smaller is kept, bytes: it is used again before long.
const LEAST: u64 = 64 << 10;

/// `struct fstrim_range` of linux/fs.h, bytes.
#[repr(C)]
pub struct Range {
    start: u64,
    len: u64,
    least: u64,
}

// FITRIM
nix::ioctl_readwrite_bad!(fitrim, 0xc018_5879, Range);

/// A mounted file system that is looked at, until [`Trimmed::end`].
#[derive(Debug)]
pub struct Trimmed(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Its root; none: it is over.
    root: Option<File>,
    least_free: u64,
    /// What had been written to the disk when it was trimmed.
    written: u64,
}

impl Trimmed {
    /// Looks at what is mounted there from now on, if there is a runtime to do that.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn begin(mounted: &Path) -> io::Result<Self> {
        let root = File::open(mounted)?;
        let least_free = free(&root)?;
        let written = written(&root);
        let state = Arc::new(Mutex::new(State { root: Some(root), least_free, written }));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(follow(state.clone()));
        }
        Ok(Self(state))
    }

    /// Lets go of it, so that it can be unmounted. Blocks while it is being trimmed.
    pub fn end(&self) {
        lock(&self.0).root = None;
    }
}

async fn follow(state: Arc<Mutex<State>>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let looked = state.clone();
        let again = tokio::task::spawn_blocking(move || lock(&looked).look(trim));
        if !again.await.unwrap_or_default() {
            return;
        }
    }
}

impl State {
    /// Whether to look again.
    fn look(&mut self, trim: impl FnOnce(&File) -> io::Result<()>) -> bool {
        let Some(root) = &self.root else { return false };
        let done = free(root).and_then(|free| {
            let written = written(root);
            let worth = free >= self.least_free.saturating_add(WORTH)
                || written >= self.written.saturating_add(WORTH);
            if worth {
                self.written = written;
            }
            self.least_free = if worth { free } else { free.min(self.least_free) };
            if worth { trim(root) } else { Ok(()) }
        });
        done.inspect_err(|error| tracing::warn!(%error, "giving back to the host what is deleted"))
            .is_ok()
    }
}

/// Bytes that nothing is in.
fn free(root: &File) -> io::Result<u64> {
    let size = fstatfs(root)?;
    Ok(size.blocks_free().saturating_mul(u64::try_from(size.block_size()).unwrap_or_default()))
}

/// Bytes that were ever written to the disk; 0 where it is none.
fn written(root: &File) -> u64 {
    let count = || {
        let disk = root.metadata().ok()?.dev();
        let path = format!("/sys/dev/block/{}:{}/stat", major(disk), minor(disk));
        sectors_written(&std::fs::read_to_string(path).ok()?)
    };
    count().unwrap_or_default().saturating_mul(512)
}

/// Of a disk's counters (the kernel's Documentation/block/stat.rst).
fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_ascii_whitespace().nth(6)?.parse().ok()
}

fn trim(root: &File) -> io::Result<()> {
    let mut all = Range { start: 0, len: u64::MAX, least: LEAST };
    // SAFETY: a structure of the kernel's layout that outlives the call.
    unsafe { fitrim(root.as_raw_fd(), &raw mut all) }?;
    Ok(())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_trimmed_when_something_was_deleted() {
        let trimmed = Trimmed::begin(Path::new("/proc")).unwrap();
        let look = |least_free| {
            let mut state = lock(&trimmed.0);
            state.least_free = least_free;
            let mut asked = false;
            let again = state.look(|_| {
                asked = true;
                Ok(())
            });
            (asked, again, state.least_free)
        };
        // Nothing is free there: no more than there was.
        assert_eq!(look(0), (false, true, 0));
        assert_eq!(look(7), (false, true, 0));
        let directory = tempfile::tempdir().unwrap();
        let trimmed = Trimmed::begin(directory.path()).unwrap();
        let mut state = lock(&trimmed.0);
        let mut times = 0;
        for _ in 0..2 {
            // Others write to that disk, too.
            state.written = u64::MAX;
            // As if all but this had been in use; the second time it is not.
            state.least_free = state.least_free.min(if times == 0 { 0 } else { u64::MAX });
            assert!(state.look(|_| {
                times += 1;
                Ok(())
            }));
        }
        assert_eq!(times, 1);
        state.least_free = 0;
        assert!(!state.look(|_| Err(io::ErrorKind::Unsupported.into())), "it never will");
        drop(state);
        trimmed.end();
        assert!(!lock(&trimmed.0).look(|_| Ok(())), "it is over");
    }

    #[test]
    fn what_was_written_is_counted() {
        let stat = "   10 2 300 4  50 6 7000 8 0 9 10 11 12 13 14 15 16\n";
        assert_eq!(sectors_written(stat), Some(7000));
        assert_eq!(sectors_written("1 2 3"), None);
        assert_eq!(written(&File::open("/proc").unwrap()), 0);
    }

    #[test]
    fn what_the_kernel_reads_has_its_layout() {
        assert_eq!(size_of::<Range>(), 24);
        assert!(trim(&File::open("/proc").unwrap()).is_err());
    }
}
