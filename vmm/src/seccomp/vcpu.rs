//! vCPU threads: they run the guest and call the devices' fronts.

use jail::SyscallFilter;

const REQUESTS: [u32; 4] = [
    0x0000_ae80, // KVM_RUN
    0x4008_ae6a, // KVM_SET_GSI_ROUTING: where a driver wants its device's interrupt
    0x8090_ae81, // KVM_GET_REGS: where a guest stood that KVM can't run on
    0x8138_ae83, // KVM_GET_SREGS: the same
];

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::new()
        .allow_if(libc::SYS_ioctl, 1, &REQUESTS)
        // A device that the driver activates gets its own copies of its eventfds.
        .allow_if(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC as u32])
}
