//! The end of the machine: the first reason counts, and one eventfd tells of it.

use protocol::control::ExitReason;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Shared by whoever can end the machine (vCPUs, devices) and the thread that waits for it.
pub struct ExitNotice {
    reason: OnceLock<ExitReason>,
    panic_seen: AtomicBool,
    event: EventFd,
}

impl ExitNotice {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// If there is no eventfd to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: OnceLock::new(),
            panic_seen: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The machine ends for `reason`, unless it has already ended for another.
    pub fn end(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // Can't fail: the counter is at 0, and it is written once.
            let _ = self.event.write(1);
        }
    }

    /// The console showed that the guest's kernel panicked; its reset, which follows, is no shutdown.
    pub fn panic_seen(&self) {
        self.panic_seen.store(true, Ordering::Relaxed);
    }

    /// The guest reset the machine, which is how it powers off.
    pub fn guest_reset(&self) {
        self.end(if self.panic_seen.load(Ordering::Relaxed) {
            ExitReason::GuestPanic
        } else {
            ExitReason::GuestShutdown
        });
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.get().cloned()
    }
}

impl AsFd for ExitNotice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

impl AsRawFd for ExitNotice {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_makes_the_event_readable() {
        let exit = ExitNotice::new().unwrap();
        assert!(exit.event.read().is_err());
        exit.end(ExitReason::TripleFault);
        exit.end(ExitReason::Stopped);
        assert_eq!(exit.reason(), Some(ExitReason::TripleFault));
        assert_eq!(exit.event.read().unwrap(), 1);
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        let exit = ExitNotice::new().unwrap();
        exit.panic_seen();
        exit.guest_reset();
        assert_eq!(exit.reason(), Some(ExitReason::GuestPanic));
    }
}
