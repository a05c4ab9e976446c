//! Where the virtio devices lie, and how KVM reaches them without this process's vCPU threads.

use crate::arch::x86_64::layout;
use crate::cmdline::MmioDevice;
use crate::kvm::KvmError;
use crate::virtio::mmio::{MmioTransport, WINDOW, register};
use kvm_ioctls::{IoEventAddress, VmFd};

/// Window and interrupt line of the device with this number; `None` beyond the last line.
pub fn place(number: u32) -> Option<MmioDevice> {
    let irq = layout::VIRTIO_IRQS.start + number;
    let address = layout::VIRTIO_MMIO + u64::from(number) * WINDOW;
    layout::VIRTIO_IRQS.contains(&irq).then_some(MmioDevice { address, len: WINDOW, irq })
}

/// Makes a device's interrupt an irqfd, and its notifications ioeventfds.
///
/// # Errors
/// KVM's.
pub fn connect(vm: &VmFd, transport: &MmioTransport, at: MmioDevice) -> Result<(), KvmError> {
    vm.register_irqfd(transport.irq(), at.irq)
        .map_err(KvmError::call("connect a device's interrupt"))?;
    let notify = IoEventAddress::Mmio(at.address + register::QUEUE_NOTIFY);
    for (queue, event) in (0u32..).zip(transport.notifications()) {
        vm.register_ioevent(event, &notify, queue)
            .map_err(KvmError::call("connect a device's notifications"))?;
    }
    Ok(())
}
