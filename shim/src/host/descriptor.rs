//! Descriptors for the program that a fork is about to execute.

use std::io;
use std::os::fd::RawFd;

/// Gives `fd` the number `number`, open across exec; what had that number is closed. For the child of a fork: it makes
/// system calls only.
///
/// # Errors
/// The system's answer.
pub fn place(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: system calls that touch no memory; of the descriptors of a process that is about to exec none is missed.
    let done = unsafe {
        if fd == number { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, number) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
