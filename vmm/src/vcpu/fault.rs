//! Where a vCPU stood that KVM could not run on.

use kvm_ioctls::VcpuFd;

/// Where the guest was when KVM gave up, and KVM's reason.
pub(super) fn describe(vcpu: &mut VcpuFd) -> String {
    let place = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            format!("rip {:#x}, cr0 {:#x}, cr3 {:#x}", regs.rip, sregs.cr0, sregs.cr3)
        }
        _ => "registers unknown".to_owned(),
    };
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return place;
    }
    // SAFETY: with this exit reason the kernel has filled in this member of the union.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    format!("suberror {suberror}, {place}")
}
