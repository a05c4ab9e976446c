//! Threads that run devices' workers: they move data between queues and descriptors.

use jail::SyscallFilter;

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new().allow(&[
        // The loop.
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_ctl,
        // Disks.
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
        // Streams of vsock: data, half-close, and a new pair for each that the guest opens.
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_shutdown,
        libc::SYS_socketpair,
        // vhost-user: messages to the file server, with descriptors.
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
    ])
}
