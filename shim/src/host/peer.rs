//! The other side of a socket.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// Whether it is gone, or has ended both directions.
pub fn has_hung_up(socket: impl AsFd) -> bool {
    is_told(socket, PollFlags::POLLHUP)
}

/// Whether it is gone without an end: it was reset, or does not answer.
pub fn is_lost(socket: impl AsFd) -> bool {
    is_told(socket, PollFlags::POLLERR)
}

fn is_told(socket: impl AsFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let asked = poll(&mut fds, PollTimeout::ZERO);
    asked.is_ok() && fds[0].revents().is_some_and(|events| events.contains(what))
}
