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
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let theirs_raw = theirs.as_raw_fd();
    let give_socket = move || {
        // SAFETY: plain system calls on a descriptor that is open in the child.
        let result = unsafe {
            if theirs_raw == CONTROL_FD {
                libc::fcntl(theirs_raw, libc::F_SETFD, 0)
            } else {
                libc::dup2(theirs_raw, CONTROL_FD)
            }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let mut command = Command::new(program);
    // SAFETY: the closure only makes async-signal-safe calls.
    unsafe { command.pre_exec(give_socket) };
    Ok((ours, command.spawn()?))
}
