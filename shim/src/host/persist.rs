//! What is on disk of a running sandbox, so that it can be cleaned up when its shim is gone.

use super::cgroup::Made;
use super::uid::Uid;
use crate::error::{Error, Result};
use crate::host::network::Joined;
use crate::host::paths::SandboxPaths;
use crate::host::replace::replace;
use crate::host::tree;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

/// A process, told from a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid.
    pub pid: i32,
    /// Start time, clock ticks since the boot of the host.
    pub start: u64,
}

impl ProcessId {
    /// The living process `pid`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).map_err(Error::path("read", &path))?;
        let start = start_time(&text)
            .ok_or_else(|| Error::path("parse", &path)(io::Error::other("no start time")))?;
        Ok(Self { pid, start })
    }

    /// The process itself.
    ///
    /// # Errors
    /// As [`ProcessId::of`].
    pub fn own() -> Result<Self> {
        Self::of(std::process::id() as i32)
    }

    /// A descriptor of the process if it is still the same one and lives.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(self.pid)?;
        // Read after the descriptor was taken: from here on it can't become another process.
        (Self::of(self.pid).ok() == Some(self)).then_some(fd)
    }

    /// Whether it lives.
    pub fn lives(self) -> bool {
        self.open().is_some()
    }

    /// Kills it, if it is still the same one, and waits until it is gone.
    ///
    /// Gives whether it was gone within `patience`.
    pub fn kill(self, patience: Duration) -> bool {
        let Some(fd) = self.open() else { return true };
        pidfd_kill(&fd) && wait(&fd, patience)
    }

    /// Waits until it is gone; gives whether it was within `patience`.
    pub fn wait(self, patience: Duration) -> bool {
        self.open().is_none_or(|fd| wait(&fd, patience))
    }
}

fn pidfd_open(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: if it is one, the kernel has just made it for this process; nothing else owns it.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pidfd_kill(pidfd: &OwnedFd) -> bool {
    let (signal, none) = (Signal::SIGKILL as i32, std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the descriptor is open, and the only pointer is null, which asks for the usual signal.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    sent == 0
}

fn wait(pidfd: &OwnedFd, patience: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

/// Field 22 of /proc/PID/stat; the second field, in brackets, may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// The process that owns the sandbox: its shim or the command line.
    pub owner: ProcessId,
    /// The VMM and the file server, once they are started.
    pub helpers: Vec<ProcessId>,
    /// The host's cgroup that was made for them all.
    #[serde(default)]
    pub cgroup: Option<Made>,
    /// The VMM's user.
    #[serde(default)]
    pub uid: Option<u32>,
    /// What of a network namespace is the guest's.
    #[serde(default)]
    pub network: Option<Joined>,
}

impl SandboxState {
    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// The system's answer, as when the disk is full.
    pub fn write(&self, paths: &SandboxPaths) -> Result<()> {
        let path = paths.state_file();
        let text = serde_json::to_vec(self)
            .map_err(|e| Error::path("encode", &path)(io::Error::from(e)))?;
        replace(&path, &text).map_err(Error::path("write", &path))
    }

    /// Reads it; `None` if there is none.
    ///
    /// # Errors
    /// It is there and can't be understood.
    pub fn read(paths: &SandboxPaths) -> Result<Option<Self>> {
        let path = paths.state_file();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::path("read", &path)(e)),
        };
        let parsed = serde_json::from_slice(&text);
        parsed.map(Some).map_err(|e| Error::path("parse", &path)(io::Error::from(e)))
    }
}

/// Makes a sandbox's directory. Where its id was another's, which is about to end or has crashed, waits for that end
/// and removes what it left.
///
/// # Errors
/// [`Error::AlreadyExists`], or the system's answer.
pub fn claim(paths: &SandboxPaths, patience: Duration) -> Result<()> {
    let taken = match paths.create() {
        Err(taken @ Error::AlreadyExists(_)) => taken,
        made => return made,
    };
    if !vacate(paths, patience)? {
        return Err(taken);
    }
    paths.create()
}

/// Waits for the end of another process that has a sandbox's directory, and removes what it left; gives whether nobody
/// has it any more.
///
/// # Errors
/// As [`clean_up`].
pub fn vacate(paths: &SandboxPaths, patience: Duration) -> Result<bool> {
    let own = ProcessId::own()?;
    match SandboxState::read(paths) {
        Ok(Some(last)) if last.owner != own && last.owner.wait(patience) => {
            clean_up(paths, patience).map(|()| true)
        }
        // It has just gone by itself.
        Ok(None) => Ok(!paths.root().exists()),
        _ => Ok(false),
    }
}

/// Leaves a cgroup to the clean-up after a sandbox of which nothing else is there any more.
///
/// # Errors
/// The system's answer.
pub fn leave_cgroup(paths: &SandboxPaths, cgroup: Made) -> Result<()> {
    paths.create()?;
    let (owner, cgroup) = (ProcessId::own()?, Some(cgroup));
    SandboxState { owner, helpers: Vec::new(), cgroup, uid: None, network: None }.write(paths)
}

/// Removes what is left of a sandbox whose owner is gone: processes, mounts, directory. Each process may take `patience`
/// to end; while one lives all else stays: it may still use it, and its uid is not to become another sandbox's.
///
/// # Errors
/// A process does not end, or the directory can't be removed; it can be tried again.
pub fn clean_up(paths: &SandboxPaths, patience: Duration) -> Result<()> {
    clean_up_by(paths, |helper| helper.kill(patience))
}

/// `end` gives whether the process is gone.
fn clean_up_by(paths: &SandboxPaths, end: impl Fn(ProcessId) -> bool) -> Result<()> {
    let Some(_alone) = lock(paths)? else { return Ok(()) };
    if let Some(state) = SandboxState::read(paths)? {
        let mut living = state.helpers;
        living.retain(|helper| !end(*helper));
        if let Some(helper) = living.first() {
            let text = format!("process {} of the sandbox does not end", helper.pid);
            return Err(Error::FailedPrecondition(text));
        }
        if let Some(Err(error)) = state.network.map(|network| network.leave()) {
            tracing::warn!("leave the network namespace: {error}");
        }
        if let Some(Err(error)) = state.uid.map(Uid::free) {
            tracing::warn!("free the uid: {error}");
        }
        if let Some(Err(error)) = state.cgroup.map(|cgroup| cgroup.remove()) {
            tracing::warn!("remove the cgroup: {error}");
        }
    }
    tree::unmount_below(paths.root());
    paths.remove().map_err(Error::path("remove", paths.root()))
}

/// Waits until this process alone cleans up; none when another has done it meanwhile, though there may be a new
/// directory at the same place.
fn lock(paths: &SandboxPaths) -> Result<Option<Flock<File>>> {
    let failed = |e: io::Error| Error::path("lock", paths.root())(e);
    let directory = match File::open(paths.root()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let alone =
        Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
    let of = |found: fs::Metadata| (found.dev(), found.ino());
    let locked = of(alone.metadata().map_err(failed)?);
    Ok(fs::metadata(paths.root()).is_ok_and(|found| of(found) == locked).then_some(alone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat), Some(4711));
    }

    #[test]
    fn another_process_of_the_same_pid_is_left_alone() {
        let own = ProcessId::own().unwrap();
        assert!(own.lives());
        let earlier = ProcessId { start: own.start + 1, ..own };
        assert!(!earlier.lives());
        assert!(earlier.kill(Duration::ZERO), "gone means gone");
    }

    #[test]
    fn an_id_is_free_when_its_last_owner_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        claim(&paths, Duration::ZERO).unwrap();
        let taken = || matches!(claim(&paths, Duration::ZERO), Err(Error::AlreadyExists(_)));
        assert!(taken(), "somebody is at it, who has not said yet");
        let mut owner = crate::testing::living();
        let state = SandboxState {
            owner: ProcessId::of(owner.id() as i32).unwrap(),
            helpers: Vec::new(),
            cgroup: None,
            uid: None,
            network: None,
        };
        state.write(&paths).unwrap();
        assert!(taken(), "its owner lives");
        let stdin = owner.stdin.take();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            drop(stdin);
        });
        claim(&paths, Duration::from_secs(20)).unwrap();
        ending.join().unwrap();
        assert!(!paths.state_file().exists(), "what the last owner left is gone");
        owner.wait().unwrap();
    }

    #[test]
    fn clean_up_kills_and_removes() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        paths.create().unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let helper = ProcessId::of(child.id() as i32).unwrap();
        let owner = ProcessId { pid: 1, start: 1 };
        let cgroup = Some(Made { directory: dir.path().join("cgroup"), scope: None });
        std::fs::create_dir(dir.path().join("cgroup")).unwrap();
        let (uid, network) = (None, None);
        let state = SandboxState { owner, helpers: vec![helper], cgroup, uid, network };
        state.write(&paths).unwrap();
        // A zombie counts as ended for a pidfd, so the wait needs nobody to reap it.
        clean_up(&paths, Duration::from_secs(10)).unwrap();
        assert_eq!(child.wait().unwrap().code(), None);
        assert!(!paths.root().exists() && !dir.path().join("cgroup").exists());
        clean_up(&paths, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_cgroup_that_was_left_goes_with_the_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        let directory = dir.path().join("cgroup");
        std::fs::create_dir(&directory).unwrap();
        leave_cgroup(&paths, Made { directory: directory.clone(), scope: None }).unwrap();
        assert!(directory.exists());
        clean_up(&paths, Duration::ZERO).unwrap();
        assert!(!directory.exists() && !paths.root().exists());
    }

    #[test]
    fn one_cleans_up_at_a_time_and_what_is_new_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        paths.create().unwrap();
        let [owner, vmm] = [1, 2].map(|pid| ProcessId { pid, start: 1 });
        let (cgroup, uid, network) = (None, None, None);
        SandboxState { owner, helpers: vec![vmm], cgroup, uid, network }.write(&paths).unwrap();
        let (ended, end) = std::sync::mpsc::channel();
        let (begun, beginning) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let paths = &paths;
            let first = scope.spawn(move || {
                clean_up_by(paths, |_| {
                    begun.send(()).unwrap();
                    end.recv().unwrap();
                    true
                })
            });
            beginning.recv().unwrap();
            let second = scope.spawn(move || clean_up_by(paths, |_| panic!("it is the first's")));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!second.is_finished(), "it waits");
            ended.send(()).unwrap();
            first.join().unwrap().unwrap();
            // Another sandbox of this id.
            let _ = paths.create();
            second.join().unwrap().unwrap();
        });
        assert!(paths.root().exists());
    }

    #[test]
    fn what_a_living_helper_uses_stays_until_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        paths.create().unwrap();
        let [owner, vmm, file_server] = [1, 2, 3].map(|pid| ProcessId { pid, start: 1 });
        let directory = dir.path().join("cgroup");
        std::fs::create_dir(&directory).unwrap();
        let cgroup = Some(Made { directory: directory.clone(), scope: None });
        let (uid, network) = (Some(7), None);
        let helpers = vec![vmm, file_server];
        let state = SandboxState { owner, helpers, cgroup, uid, network };
        state.write(&paths).unwrap();
        let asked = std::cell::RefCell::default();
        // As one in a system call that can't be interrupted.
        let error = clean_up_by(&paths, |helper| {
            std::cell::RefCell::<Vec<_>>::borrow_mut(&asked).push(helper);
            helper != vmm
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("process 2 ") && error.contains("does not end"), "{error}");
        assert_eq!(asked.into_inner(), [vmm, file_server], "the other is ended all the same");
        assert!(directory.exists());
        assert_eq!(SandboxState::read(&paths).unwrap(), Some(state));
        clean_up_by(&paths, |_| true).unwrap();
        assert!(!paths.root().exists() && !directory.exists());
    }
}
