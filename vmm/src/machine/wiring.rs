//! How KVM reaches the virtio devices without this process's vCPU threads.

use crate::arch::x86_64::layout::VirtioWindow;
use crate::kvm::KvmError;
use crate::virtio::mmio::{MmioTransport, register};
use kvm_ioctls::{IoEventAddress, VmFd};

/// Makes a device's interrupt an irqfd, and its notifications ioeventfds.
///
/// # Errors
/// KVM's.
pub fn connect(vm: &VmFd, transport: &MmioTransport, at: VirtioWindow) -> Result<(), KvmError> {
    vm.register_irqfd(transport.irq(), at.irq)
        .map_err(KvmError::call("connect a device's interrupt"))?;
    let notify = IoEventAddress::Mmio(at.address + register::QUEUE_NOTIFY);
    for (queue, event) in transport.notifications() {
        vm.register_ioevent(event, &notify, queue)
            .map_err(KvmError::call("connect a device's notifications"))?;
    }
    Ok(())
}
