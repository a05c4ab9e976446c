//! Which descriptors an I/O loop waits for on behalf of a worker.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Registers a worker's descriptors in its loop's epoll set.
pub struct Watcher<'a> {
    pub(super) epoll: &'a Epoll,
    pub(super) id: u32,
    pub(super) fds: &'a mut BTreeSet<RawFd>,
}

impl Watcher<'_> {
    /// Watches `fd` for `events` (epoll's); they arrive with `token`.
    ///
    /// # Errors
    /// The system call's.
    pub fn add(&mut self, fd: &impl AsRawFd, events: EventSet, token: u32) -> io::Result<()> {
        let event = EpollEvent::new(events, u64::from(self.id) << 32 | u64::from(token));
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)?;
        self.fds.insert(fd.as_raw_fd());
        Ok(())
    }

    /// No longer watches `fd`; to be called before it is closed.
    pub fn remove(&mut self, fd: &impl AsRawFd) {
        if self.fds.remove(&fd.as_raw_fd()) {
            // It was added, so this can't fail.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        }
    }

    /// No longer watches any.
    pub(super) fn clear(&mut self) {
        for fd in std::mem::take(self.fds) {
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}
