//! Descriptors that come from the caller, and those that are sent to it.

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// First descriptor that is no standard stream.
const FIRST: u32 = 3;

/// Keeps every descriptor that the caller has left open from the programs that this process starts, the one in
/// the background among them.
///
/// # Errors
/// The kernel is older than Linux 5.11.
pub(crate) fn keep_from_children() -> Result<()> {
    // SAFETY: it takes three integers; setting a flag invalidates no descriptor.
    let done =
        unsafe { libc::close_range(FIRST, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    nix::errno::Errno::result(done).map(drop).context("keep the caller's descriptors")
}

/// Connects to a Unix socket of the caller's that is to receive a descriptor.
pub(crate) fn connect(what: &str, socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket)
        .with_context(|| format!("connect to the {what} socket {}", socket.display()))
}

/// Sends a descriptor, with a name as runc does.
pub(crate) fn send(to: &UnixStream, name: &[u8], descriptor: impl AsFd) -> Result<()> {
    let rights = [descriptor.as_fd().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    let sent = sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(name)],
        &message,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.map(drop).context("send a descriptor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::fs::File;

    #[test]
    fn what_the_caller_left_open_is_not_inherited() {
        let file = File::open("/dev/null").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        keep_from_children().unwrap();
        let flags = FdFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let stdin = FdFlag::from_bits_retain(fcntl(std::io::stdin(), FcntlArg::F_GETFD).unwrap());
        assert!(!stdin.contains(FdFlag::FD_CLOEXEC));
    }
}
