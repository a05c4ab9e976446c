//! PID 1 of a pod whose containers share their processes and which has no container of its own for that: it holds the
//! PID namespace, and collects those who lose their parent there.
//!
//! It is the agent's program, started by another name: with an empty root, no privilege and no open file.

use crate::error::AgentError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, pivot_root, setgroups, setresgid, setresuid};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

/// Its name, by which those who look for it in a pod know it.
const NAME: &str = "/pause";

/// Its user and group, as of the container that others have for this.
const NOBODY: u32 = 65535;

/// Starts it; its pid. Blocks until it has its namespace.
///
/// # Errors
/// The kernel refuses a step.
pub fn start() -> Result<i32, AgentError> {
    let failed = |e| AgentError::io("starting the pod's first process", e);
    let mut maker = Command::new("/proc/self/exe");
    maker.arg0(NAME).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Reaped like everybody else, by the agent's one reaper.
    let mut maker = maker.spawn().map_err(failed)?;
    let mut said = String::new();
    maker.stdout.take().map_or(Ok(0), |mut out| out.read_to_string(&mut said)).map_err(failed)?;
    said.parse().map_err(|_| failed(std::io::Error::other(said)))
}

/// Does the work, if this process was started by its name.
pub fn run() -> Option<ExitCode> {
    (std::env::args_os().next()? == NAME).then(|| match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(std::io::stdout(), "{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Makes the namespace's first process, and tells its pid.
fn make() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    leave_root()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_no_new_privs()?;
    let ended = SigSet::from(Signal::SIGCHLD);
    ended.thread_block()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => collect(ended),
        ForkResult::Parent { child } => Ok(write!(std::io::stdout(), "{child}")?),
    }
}

fn leave_root() -> nix::Result<()> {
    const PLACE: &str = "/tmp";
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, none)?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Reaps for ever. The kernel keeps signals from the first process of a namespace that it does not wait for.
fn collect(ended: SigSet) -> ! {
    // SAFETY: nothing here uses a descriptor any more.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        let _ = ended.wait();
    }
}
