//! The thread that serves the control socket, starts and stops the others, and writes the log.

use jail::SyscallFilter;

/// KVM's requests that give a running machine memory and connect a disk.
const REQUESTS: [u32; 3] = [
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0x4020_ae76, // KVM_IRQFD
    0x4040_ae79, // KVM_IOEVENTFD
];

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new()
        .allow(&[
            // Waits for the control socket, the machine's end, devices' events and the console.
            libc::SYS_poll,
            libc::SYS_ppoll,
            // The loop of a disk that is attached, and what its threads wait for.
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_eventfd2,
            // The control socket.
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            // The console's log: written at its end, shortened when it is full.
            libc::SYS_pwrite64,
            libc::SYS_pread64,
            libc::SYS_ftruncate,
        ])
        .allow_if(libc::SYS_ioctl, 1, &REQUESTS)
        // Streams that come from the control socket are made non-blocking; devices that go on after
        // a pause get copies of their eventfds.
        .allow_if(
            libc::SYS_fcntl,
            1,
            &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32],
        )
}
