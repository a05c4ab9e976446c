//! The thread that runs network interfaces' workers: they move frames between queues and taps, or tell the host's kernel
//! to.

use crate::devices::net::{TUNSETOFFLOAD, vhost_requests};
use jail::SyscallFilter;

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new()
        .allow(&[
            // The loop.
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_ctl,
            // Frames.
            libc::SYS_readv,
            libc::SYS_writev,
        ])
        // What a driver that comes up takes from the tap; and vhost-net, where the machine was given that.
        .allow_if(libc::SYS_ioctl, 1, &[&[TUNSETOFFLOAD][..], &vhost_requests()].concat())
}
