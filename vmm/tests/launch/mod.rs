//! Starts a VMM process as a shim does, with its control socket at descriptor 3.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::control::CONTROL_FD;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

/// This end of the control socket, and the process.
pub fn spawn(program: &Path) -> io::Result<(OwnedFd, Child)> {
    spawn_after(program, || Ok(()))
}

/// As [`spawn`]; `prepare` runs in the child and makes async-signal-safe calls only.
pub fn spawn_after(
    program: &Path,
    mut prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<(OwnedFd, Child)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let theirs_raw = theirs.as_raw_fd();
    let prepared = move || {
        // SAFETY: plain system calls on a descriptor that is open in the child.
        let result = unsafe {
            if theirs_raw == CONTROL_FD {
                libc::fcntl(theirs_raw, libc::F_SETFD, 0)
            } else {
                libc::dup2(theirs_raw, CONTROL_FD)
            }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { prepare() }
    };
    let mut command = Command::new(program);
    // SAFETY: the closure only makes async-signal-safe calls.
    unsafe { command.pre_exec(prepared) };
    Ok((ours, command.spawn()?))
}
