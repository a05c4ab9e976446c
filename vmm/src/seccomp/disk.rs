//! The threads of disks: they move data between a queue and files.

use crate::devices::blk::BLKDISCARD;
use jail::SyscallFilter;

/// What they do; the thread that starts them may do it as well, since they are under its filter, too.
pub(super) fn filter() -> SyscallFilter {
    let filter = SyscallFilter::new().allow(&[
        // The loop.
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_ctl,
        // Requests.
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
    ]);
    // What a device is to forget that has no other way.
    filter.allow_if(libc::SYS_ioctl, 1, &[BLKDISCARD])
}
