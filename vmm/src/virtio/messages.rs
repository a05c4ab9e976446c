//! Interrupts that are messages: each device's goes straight to the processor that its driver has named.
//!
//! KVM delivers a message at once, from whichever thread signals the irqfd; a line's interrupt has to wait for a kernel
//! worker that goes by the IO-APIC, and its end (EOI) is an exit.

use crate::arch::x86_64::layout::IO_APIC_PINS;
use crate::kvm::KvmError;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Lines of the two PICs, and of each.
const PIC_LINES: u32 = 16;
const PIC_PINS: u32 = 8;

/// What a driver has its device say to the processor: a write of `data` to `address` (Intel SDM 3, 12.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// In the window of the local APICs, or nobody hears it.
    pub address: u32,
    /// Vector and kind.
    pub data: u32,
}

/// What becomes of each interrupt line of a machine.
pub struct Routes {
    vm: Arc<VmFd>,
    /// Lines that are messages.
    messages: Mutex<BTreeMap<u32, Message>>,
}

impl Routes {
    /// Every line goes to the interrupt controllers, as KVM has it from the start.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, messages: Mutex::default() }
    }

    /// From now on the interrupt of this line is that message.
    ///
    /// # Errors
    /// KVM's; it stays what it was then.
    pub fn set(&self, line: u32, message: Message) -> Result<(), KvmError> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.get(&line) == Some(&message) {
            return Ok(());
        }
        let mut changed = messages.clone();
        changed.insert(line, message);
        // A table is of fewer entries than there can be.
        let table = KvmIrqRouting::from_entries(&table(&changed))
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG));
        table
            .and_then(|table| self.vm.set_gsi_routing(&table))
            .map_err(KvmError::call("route a device's interrupt"))?;
        *messages = changed;
        Ok(())
    }

    /// What the interrupt of a line is, if it is a message.
    #[cfg(test)]
    pub fn message(&self, line: u32) -> Option<Message> {
        self.messages.lock().unwrap().get(&line).copied()
    }
}

/// All entries: KVM replaces the whole table.
fn table(messages: &BTreeMap<u32, Message>) -> Vec<kvm_irq_routing_entry> {
    let lines = 0..u32::from(IO_APIC_PINS);
    let of_line = |line| match messages.get(&line) {
        Some(message) => vec![by_message(line, *message)],
        None if line < PIC_LINES => {
            let pic = if line < PIC_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            vec![by_pin(line, pic, line % PIC_PINS), by_pin(line, KVM_IRQCHIP_IOAPIC, line)]
        }
        None => vec![by_pin(line, KVM_IRQCHIP_IOAPIC, line)],
    };
    lines.flat_map(of_line).collect()
}

fn by_pin(line: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: line, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn by_message(line: u32, Message { address, data }: Message) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: line, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo: address, data, ..Default::default() };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm;
    use std::path::Path;

    const MESSAGE: Message = Message { address: 0xfee0_0000, data: 0x31 };

    /// Line and kind of each entry.
    fn kinds(messages: &BTreeMap<u32, Message>) -> Vec<(u32, u32)> {
        table(messages).iter().map(|entry| (entry.gsi, entry.type_)).collect()
    }

    #[test]
    fn a_line_that_is_a_message_goes_nowhere_else_and_all_others_stay() {
        let before = kinds(&BTreeMap::new());
        assert_eq!(before.len(), 16 + 24);
        let after = kinds(&BTreeMap::from([(5, MESSAGE), (20, MESSAGE)]));
        let of = |kinds: &[(u32, u32)], line| kinds.iter().filter(|(of, _)| *of == line).count();
        assert_eq!((of(&before, 5), of(&before, 20)), (2, 1));
        for line in [5, 20] {
            assert_eq!(of(&after, line), 1);
            assert!(after.contains(&(line, KVM_IRQ_ROUTING_MSI)));
        }
        let others = |kinds: Vec<(u32, u32)>| -> Vec<_> {
            kinds.into_iter().filter(|(line, _)| ![5, 20].contains(line)).collect()
        };
        assert_eq!(others(before), others(after));
    }

    #[test]
    fn kvm_takes_what_is_told_and_refuses_nothing_that_a_driver_can_say() {
        let kvm = kvm::open_at(Path::new(kvm::DEVICE)).unwrap();
        let routes = Routes::new(Arc::new(kvm::create_vm(&kvm).unwrap()));
        for (line, message) in [
            (5, MESSAGE),
            (5, MESSAGE),
            (23, MESSAGE),
            (23, Message { address: u32::MAX, data: u32::MAX }),
            (23, Message { address: 0, data: 0 }),
        ] {
            routes.set(line, message).unwrap();
        }
    }
}
