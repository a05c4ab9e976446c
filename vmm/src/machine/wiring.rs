//! How KVM reaches the virtio devices without this process's vCPU threads.

use crate::arch::x86_64::layout::VirtioWindow;
use crate::kvm::KvmError;
use crate::virtio::interrupt::USED;
use crate::virtio::mmio::{MmioTransport, register};
use kvm_ioctls::{IoEventAddress, VmFd};
use std::ops::Range;

/// Makes a device's interrupt an irqfd, and its notifications ioeventfds.
///
/// # Errors
/// KVM's.
pub fn connect(vm: &VmFd, transport: &MmioTransport, at: VirtioWindow) -> Result<(), KvmError> {
    connect_queues(vm, transport, at, 0..usize::MAX)
}

/// The same for these of its queues; with the first of them its interrupt.
///
/// # Errors
/// KVM's.
pub fn connect_queues(
    vm: &VmFd,
    transport: &MmioTransport,
    at: VirtioWindow,
    queues: Range<usize>,
) -> Result<(), KvmError> {
    if queues.start == 0 {
        vm.register_irqfd(transport.irq(), at.irq)
            .map_err(KvmError::call("connect a device's interrupt"))?;
        let acknowledge = IoEventAddress::Mmio(at.address + register::INTERRUPT_ACK);
        vm.register_ioevent(transport.acknowledgements(), &acknowledge, USED)
            .map_err(KvmError::call("connect a device's acknowledgements"))?;
    }
    let notify = IoEventAddress::Mmio(at.address + register::QUEUE_NOTIFY);
    let port = IoEventAddress::Pio(at.notify_port.into());
    let asked = transport.notifications().filter(|(queue, _)| queues.contains(&(*queue as usize)));
    for (queue, event) in asked {
        vm.register_ioevent(event, &notify, queue)
            .and_then(|()| vm.register_ioevent(event, &port, queue as u16))
            .map_err(KvmError::call("connect a device's notifications"))?;
    }
    Ok(())
}
