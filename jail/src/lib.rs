//! How a process of kata-like gives up what it does not need, before it looks at anything a guest wrote.
//!
//! A [`Jail`] says what is left: an identity, a few capabilities, a root directory, limits. [`Jail::enter`]
//! makes it so and cannot be undone. The process must have a single thread then: namespaces and capabilities
//! belong to threads, and those started later inherit them. A [`SyscallFilter`] follows, one for each thread's
//! role, when the thread has opened what it needs.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use jail::{Capabilities, Identity, Jail, Namespaces, Root, SyscallFilter};
//!
//! jail::close_other_fds(&[3])?;
//! Jail {
//!     identity: Some(Identity { uid: 4242, gid: 4242 }),
//!     capabilities: Capabilities::empty(),
//!     root: Root::Empty,
//!     namespaces: Namespaces::ALL,
//!     open_files: Some(128),
//! }
//! .enter()?;
//! SyscallFilter::new().allow(&[libc::SYS_read, libc::SYS_exit_group]).compile()?.apply()?;
//! # Ok(())
//! # }
//! ```

mod cores;
mod descriptors;
mod devices;
mod error;
mod privilege;
mod root;
mod seccomp;

pub use cores::{can_isolate_cores, isolate_cores};
pub use descriptors::close_other_fds;
pub use devices::forbid_devices;
pub use error::{JailError, Step};
pub use root::Root;
pub use rustix::thread::CapabilitySet as Capabilities;
pub use seccomp::{CompiledFilter, SeccompError, SyscallFilter};

use error::StepResult;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;

/// What is left to a process after [`Jail::enter`].
#[derive(Debug, Clone)]
pub struct Jail {
    /// Who the process becomes. `None`: it stays who it is, and what needs privilege to be given up
    /// (supplementary groups, bounding set) stays too: for processes that had no privilege to begin with.
    pub identity: Option<Identity>,
    /// The capabilities kept in the permitted, effective and bounding sets; the inheritable and ambient
    /// sets become empty in any case.
    pub capabilities: Capabilities,
    /// What the process sees as `/`.
    pub root: Root,
    /// Which namespaces it gets for itself; [`Root`] decides about the mount namespace.
    pub namespaces: Namespaces,
    /// `RLIMIT_NOFILE`, soft and hard; less if the inherited hard limit is lower and the process may not
    /// raise it. `None`: as inherited. Core dumps are always off, for they would hold the guest's memory.
    pub open_files: Option<u64>,
}

/// The real, effective and saved user and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Namespaces that a process can move into by itself. A pid namespace is not among them: it would hold
/// for children only, and threads could no longer be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    /// No network interface but a loopback that is down.
    pub net: bool,
    /// No System V IPC and POSIX message queues of the host.
    pub ipc: bool,
    /// A host name of its own.
    pub uts: bool,
    /// The own cgroup seen as the root of all.
    pub cgroup: bool,
}

impl Namespaces {
    /// Every namespace.
    pub const ALL: Self = Self { net: true, ipc: true, uts: true, cgroup: true };
    /// None: the host's.
    pub const NONE: Self = Self { net: false, ipc: false, uts: false, cgroup: false };

    fn flags(self) -> UnshareFlags {
        let mut flags = UnshareFlags::empty();
        flags.set(UnshareFlags::NEWNET, self.net);
        flags.set(UnshareFlags::NEWIPC, self.ipc);
        flags.set(UnshareFlags::NEWUTS, self.uts);
        flags.set(UnshareFlags::NEWCGROUP, self.cgroup);
        flags
    }
}

impl Jail {
    /// Confines the calling process for good. Descriptors that are open stay open.
    ///
    /// The order leaves no window: what needs privilege comes first, the capabilities go last, and
    /// nothing is looked up by path after the root has changed.
    ///
    /// # Errors
    /// [`JailError`] names the step that failed. The process is then half confined and should end.
    pub fn enter(self) -> Result<(), JailError> {
        let threads = fs::read_dir("/proc/self/task").step(Step::CountThreads)?.count();
        if threads != 1 {
            return Err(JailError::Threads { threads });
        }
        self.limit()?;
        let mut flags = self.namespaces.flags();
        flags.set(UnshareFlags::NEWNS, !matches!(self.root, Root::Unchanged));
        if !flags.is_empty() {
            // SAFETY: CLONE_FILES is not among the flags, so every thread keeps its descriptors.
            unsafe { unshare_unsafe(flags) }.step(Step::Unshare)?;
        }
        self.root.enter()?;
        if let Some(identity) = self.identity {
            privilege::drop_bounding_set(self.capabilities)?;
            privilege::lock_secure_bits()?;
            privilege::become_identity(identity, self.capabilities)?;
        }
        privilege::keep_only(self.capabilities)
    }

    fn limit(&self) -> Result<(), JailError> {
        set_limit(Resource::Core, 0).step(Step::Limits)?;
        let Some(files) = self.open_files else { return Ok(()) };
        match (set_limit(Resource::Nofile, files), getrlimit(Resource::Nofile).maximum) {
            (Err(Errno::PERM), Some(hard)) => set_limit(Resource::Nofile, hard.min(files)),
            (result, _) => result,
        }
        .step(Step::Limits)
    }
}

fn set_limit(resource: Resource, value: u64) -> Result<(), Errno> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}
