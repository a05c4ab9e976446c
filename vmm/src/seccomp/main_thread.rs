//! The thread that serves the control socket, starts and stops the others, and writes the log.

use jail::SyscallFilter;

/// KVM's requests for the state of a paused machine, and those that give it memory and connect a disk.
const REQUESTS: [u32; 16] = [
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0x4020_ae76, // KVM_IRQFD
    0x4040_ae79, // KVM_IOEVENTFD
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0xc008_ae91, // KVM_GET_CPUID2
    0x8004_ae98, // KVM_GET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x0000_aea3, // KVM_GET_TSC_KHZ
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x8070_ae9f, // KVM_GET_PIT2
];

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new()
        .allow(&[
            // Waits for the control socket, the machine's end, devices' events and the console.
            libc::SYS_poll,
            libc::SYS_ppoll,
            // The control socket.
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            // The console's log: written at its end, shortened when it is full.
            libc::SYS_pwrite64,
            libc::SYS_pread64,
            libc::SYS_ftruncate,
        ])
        // States for a snapshot, and memory for a machine that grows.
        .allow_if(libc::SYS_ioctl, 1, &REQUESTS)
        // Streams that come from the control socket are made non-blocking; devices that go on after
        // a pause get copies of their eventfds.
        .allow_if(
            libc::SYS_fcntl,
            1,
            &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32],
        )
}
