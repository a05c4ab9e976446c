//! Virtual machines that exist and never run, so that the lab's kernel need not patch its own code.
//!
//! KVM turns jump labels when the first virtual machine comes, when the last goes, and when a vCPU's APIC is
//! enabled. QEMU's TCG, with a thread per CPU, may translate such a place while another thread writes it and then
//! keep the breakpoint that stood there for a moment: the lab's kernel dies of `Oops: int3` (seen once in some
//! hundred starts). While these exist, the labels stay as they are.

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Makes the machines and holds them for ever.
///
/// # Errors
/// When KVM can't make them.
pub fn keep() -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    // One whose vCPU has an APIC that nothing has enabled, one whose vCPU has none.
    let _kept = (vm(&kvm, true)?, vm(&kvm, false)?);
    loop {
        std::thread::park();
    }
}

fn vm(kvm: &Kvm, apic: bool) -> Result<(VmFd, VcpuFd)> {
    let vm = kvm.create_vm().context("a VM")?;
    if apic {
        vm.create_irq_chip().context("an interrupt controller")?;
    }
    let vcpu = vm.create_vcpu(0).context("a vCPU")?;
    Ok((vm, vcpu))
}
