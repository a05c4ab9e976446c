//! Starting the two helper processes of a sandbox.

use crate::error::{Error, Result};
use crate::host::descriptor::place;
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// The descriptor at which both helpers find their socket.
const SOCKET_FD: RawFd = protocol::control::CONTROL_FD;

/// Starts `program` with `socket` at descriptor 3, its standard error piped, everything else closed; in the cgroup
/// whose `cgroup.procs` is given, or in the caller's.
///
/// It is killed when the calling *thread* ends (until it changes its identity), so that thread must live
/// as long as the sandbox.
///
/// # Errors
/// The program can't be started; it is named.
pub fn helper(
    program: &Path,
    args: &[&OsStr],
    socket: OwnedFd,
    cgroup: Option<&File>,
) -> Result<Child> {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // The user's Ctrl-C is for the container, which the command line passes it on to.
        .process_group(0)
        .kill_on_drop(true);
    let fd = socket.as_raw_fd();
    let parent = nix::unistd::getpid();
    let procs = cgroup.map(AsRawFd::as_raw_fd);
    // SAFETY: the closure makes only system calls that are allowed between fork and exec, and doesn't allocate.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(nix::Error::ESRCH.into());
            }
            procs.map_or(Ok(()), enter)?;
            place(fd, SOCKET_FD)
        });
    }
    let child = command.spawn().map_err(Error::path("start", program))?;
    drop(socket);
    give_up_protection(&child);
    Ok(child)
}

/// containerd and its shims are protected from the system's shortage of memory; a guest must not be.
fn give_up_protection(child: &Child) {
    let Some(pid) = child.id() else { return };
    let file = format!("/proc/{pid}/oom_score_adj");
    let protected = std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with('-'));
    if protected && let Err(error) = std::fs::write(&file, "0") {
        tracing::warn!("{file}: {error}");
    }
}

/// Moves this process to the cgroup whose `cgroup.procs` is open at `procs`.
fn enter(procs: RawFd) -> std::io::Result<()> {
    // SAFETY: writes a byte of a constant; the caller keeps the descriptor open.
    let written = unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
    if written < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
