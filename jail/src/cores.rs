//! Keeping the threads of other processes off the core that a thread runs on (Linux's core scheduling).

use std::io;

/// From now on the sibling threads of a core that runs a thread of this process run no other process's:
/// neither reads what the other leaves in the core's caches and buffers. Threads started later inherit it.
///
/// # Errors
/// `ENODEV` where no core has several threads, `EINVAL` where the kernel can't (before 5.14, or built without).
pub fn isolate_cores() -> io::Result<()> {
    prctl(libc::PR_SCHED_CORE_CREATE, 0)
}

/// Whether [`isolate_cores`] can be had; asks only.
///
/// # Errors
/// As there.
pub fn can_isolate_cores() -> io::Result<()> {
    let mut cookie = 0u64;
    prctl(libc::PR_SCHED_CORE_GET, (&raw mut cookie) as libc::c_ulong)
}

fn prctl(command: libc::c_int, cookie: libc::c_ulong) -> io::Result<()> {
    // The cookie can be asked of a single thread only.
    let scope = match command {
        libc::PR_SCHED_CORE_GET => libc::PR_SCHED_CORE_SCOPE_THREAD,
        _ => libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP,
    };
    // SAFETY: of the commands used here only GET writes, the cookie that the caller owns.
    let result = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            command as libc::c_ulong,
            0 as libc::c_ulong,
            scope,
            cookie,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_had_is_had_and_what_can_not_is_told_alike() {
        let asked = can_isolate_cores().map_err(|e| e.raw_os_error());
        let done = isolate_cores().map_err(|e| e.raw_os_error());
        assert_eq!(asked, done);
        assert!(matches!(done, Ok(()) | Err(Some(libc::ENODEV | libc::EINVAL))), "{done:?}");
    }
}
