//! How KVM reaches the virtio devices without this process's vCPU threads.

use crate::arch::x86_64::layout::VirtioWindow;
use crate::kvm::KvmError;
use crate::virtio::interrupt::USED;
use crate::virtio::mmio::{MmioTransport, register};
use kvm_ioctls::{IoEventAddress, VmFd};
use std::ops::Range;
use vmm_sys_util::eventfd::EventFd;

/// Makes a device's interrupt an irqfd, and its notifications ioeventfds.
///
/// # Errors
/// KVM's.
pub fn connect(vm: &VmFd, transport: &MmioTransport, at: VirtioWindow) -> Result<(), KvmError> {
    connect_queues(vm, transport, at, 0..usize::MAX)
}

/// The same for these of its queues; with the first of them its interrupt. What fails leaves nothing connected of them, so
/// that it can be tried again.
///
/// # Errors
/// KVM's.
pub fn connect_queues(
    vm: &VmFd,
    transport: &MmioTransport,
    at: VirtioWindow,
    queues: Range<usize>,
) -> Result<(), KvmError> {
    let wires = Wires::of(transport, at, queues);
    let connected = wires.connect(vm);
    if connected.is_err() {
        wires.disconnect(vm);
    }
    connected
}

/// What is connected at once.
struct Wires<'a> {
    interrupt: Option<(&'a EventFd, u32)>,
    acknowledgement: Option<(&'a EventFd, IoEventAddress)>,
    notifications: Vec<(u32, &'a EventFd)>,
    /// Where they are notified of: a register, and a port.
    notify: [IoEventAddress; 2],
}

impl<'a> Wires<'a> {
    fn of(transport: &'a MmioTransport, at: VirtioWindow, queues: Range<usize>) -> Self {
        let is_first = queues.start == 0;
        let acknowledge = IoEventAddress::Mmio(at.address + register::INTERRUPT_ACK);
        let notify = IoEventAddress::Mmio(at.address + register::QUEUE_NOTIFY);
        let notifications = transport.notifications();
        let asked = notifications.filter(|(queue, _)| queues.contains(&(*queue as usize)));
        Self {
            interrupt: is_first.then(|| (transport.irq(), at.irq)),
            acknowledgement: is_first.then(|| (transport.acknowledgements(), acknowledge)),
            notifications: asked.collect(),
            notify: [notify, IoEventAddress::Pio(at.notify_port.into())],
        }
    }

    fn connect(&self, vm: &VmFd) -> Result<(), KvmError> {
        if let Some((event, line)) = self.interrupt {
            vm.register_irqfd(event, line)
                .map_err(KvmError::call("connect a device's interrupt"))?;
        }
        if let Some((event, address)) = &self.acknowledgement {
            vm.register_ioevent(event, address, USED)
                .map_err(KvmError::call("connect a device's acknowledgements"))?;
        }
        let [register, port] = &self.notify;
        for (queue, event) in &self.notifications {
            vm.register_ioevent(event, register, *queue)
                .and_then(|()| vm.register_ioevent(event, port, *queue as u16))
                .map_err(KvmError::call("connect a device's notifications"))?;
        }
        Ok(())
    }

    /// Each that is connected; of the others KVM says that they are not.
    fn disconnect(&self, vm: &VmFd) {
        if let Some((event, line)) = self.interrupt {
            let _ = vm.unregister_irqfd(event, line);
        }
        if let Some((event, address)) = &self.acknowledgement {
            let _ = vm.unregister_ioevent(event, address, USED);
        }
        let [register, port] = &self.notify;
        for (queue, event) in &self.notifications {
            let _ = vm.unregister_ioevent(event, register, *queue);
            let _ = vm.unregister_ioevent(event, port, *queue as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::net::Net;
    use crate::virtio::io_loop::IoLoop;
    use crate::virtio::testing::{memory, registers};
    use std::fs::File;
    use std::path::Path;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn what_can_not_be_connected_can_be_tried_again() {
        let kvm = crate::kvm::open_at(Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let (events, _told) = crate::events::channel().unwrap();
        let io = IoLoop::new("test", events).unwrap();
        let device = Net::new(File::open("/dev/null").unwrap(), [2; 6], 1500).unwrap();
        let transport =
            MmioTransport::new(registers(), Box::new(device), memory(), io.handle()).unwrap();
        let at = VirtioWindow::of(3).unwrap();
        let port = IoEventAddress::Pio(at.notify_port.into());
        let other = EventFd::new(EFD_NONBLOCK).unwrap();
        // The last thing that is connected is another's.
        vm.register_ioevent(&other, &port, 1u16).unwrap();
        for _ in 0..2 {
            assert!(connect(&vm, &transport, at).is_err());
        }
        vm.unregister_ioevent(&other, &port, 1u16).unwrap();
        connect(&vm, &transport, at).unwrap();
        assert!(connect(&vm, &transport, at).is_err(), "it is connected");
    }
}
