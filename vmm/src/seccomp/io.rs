//! Threads that run the workers of most devices: they move data between queues and sockets.

use jail::SyscallFilter;

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new()
        .allow(&[
            // The loop.
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_ctl,
            // Streams of vsock: data and half-close.
            libc::SYS_sendto,
            libc::SYS_shutdown,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
        ])
        // A new pair for each stream that the guest opens.
        .allow_if(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u32])
        // vhost-user, which is sendmsg and recvmsg as well: the file server gets a copy of the
        // interrupt's eventfd.
        .allow_if(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC as u32])
}
