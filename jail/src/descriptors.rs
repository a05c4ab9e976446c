//! Closing what a process has inherited without wanting it.

use crate::error::{JailError, Step, StepResult};
use std::io;
use std::os::fd::RawFd;

/// Closes every descriptor from 3 on except those in `keep`, which need not be sorted.
///
/// To be called at the start of `main`, before any descriptor has an owner: those closed here must not
/// belong to an object that is alive.
///
/// # Errors
/// When the system has no close_range (before Linux 5.9).
pub fn close_other_fds(keep: &[RawFd]) -> Result<(), JailError> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1).step(Step::CloseDescriptors)?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close_range(first, u32::MAX).step(Step::CloseDescriptors)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no memory is touched; that no descriptor in the range has an owner is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
