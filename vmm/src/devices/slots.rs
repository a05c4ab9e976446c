//! Places for disks that come and go while the machine runs.
//!
//! A slot is a virtio-mmio device from the start, as its window and interrupt are announced on the kernel's
//! command line. Empty it has device id 0: a placeholder, which drivers leave alone (virtio 1.3 §4.2.3.1).
//! The guest binds its driver again, by sysfs, when it is told of a disk.

use super::blk::{Disk, OddSize, QUEUE_SIZES};
use crate::kvm::KvmError;
use crate::virtio::io_loop::LoopStuck;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::{ActivateError, Activation, VirtioDevice, Worker};
use std::sync::Arc;

/// The device without a function; it can be told to be what it becomes only by [`DiskSlots`].
pub struct EmptySlot;

impl VirtioDevice for EmptySlot {
    fn device_type(&self) -> u32 {
        0
    }

    /// As a disk's: its notifications are set up before there is one.
    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Err(ActivateError::MissingQueue(0))
    }
}

/// Why a disk can't be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Its size.
    #[error(transparent)]
    Size(#[from] OddSize),
    /// There is a disk in each.
    #[error("each of the machine's {0} slots for disks is taken: raise machine.max_disks")]
    Full(usize),
    /// No slot has that number.
    #[error("device {0} is no disk")]
    NoDisk(u32),
    /// KVM does not take its interrupt or notifications.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A request to the disk takes too long; it stays.
    #[error(transparent)]
    Stuck(#[from] LoopStuck),
}

/// The slots of a machine.
pub struct DiskSlots {
    /// The number of the first of them among all devices.
    first: u32,
    slots: Vec<Slot>,
}

struct Slot {
    transport: Arc<MmioTransport>,
    connected: bool,
    taken: bool,
}

impl DiskSlots {
    /// Empty ones, which follow `first` other devices.
    pub fn new(first: u32, slots: &[Arc<MmioTransport>]) -> Self {
        let slot = |transport: &Arc<MmioTransport>| Slot {
            transport: transport.clone(),
            connected: false,
            taken: false,
        };
        Self { first, slots: slots.iter().map(slot).collect() }
    }

    /// The number of the first slot.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Puts `disk` into an empty slot; gives the device's number. Before the first disk of a slot, `connect` is
    /// to connect its interrupt and notifications, which takes longer than all else of an empty slot.
    ///
    /// # Errors
    /// [`SlotError::Full`], or `connect`'s.
    pub fn attach(
        &mut self,
        disk: Disk,
        connect: impl FnOnce(u32, &MmioTransport) -> Result<(), SlotError>,
    ) -> Result<u32, SlotError> {
        let count = self.slots.len();
        let mut numbered = (self.first..).zip(&mut self.slots);
        let (number, slot) =
            numbered.find(|(_, slot)| !slot.taken).ok_or(SlotError::Full(count))?;
        if !slot.connected {
            connect(number, &slot.transport)?;
            slot.connected = true;
        }
        slot.taken = true;
        slot.transport.replace(Box::new(disk))?;
        Ok(number)
    }

    /// Takes the disk out of the device with this number, and lets go of its file.
    ///
    /// # Errors
    /// [`SlotError::NoDisk`], or [`SlotError::Stuck`] after five seconds, when it stays.
    pub fn detach(&mut self, number: u32) -> Result<(), SlotError> {
        let index = number.checked_sub(self.first).map(|index| index as usize);
        let slot = index.and_then(|index| self.slots.get_mut(index)).filter(|slot| slot.taken);
        let slot = slot.ok_or(SlotError::NoDisk(number))?;
        slot.transport.replace(Box::new(EmptySlot))?;
        slot.taken = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::events;
    use crate::virtio::io_loop::IoLoop;
    use crate::virtio::mmio::register;
    use crate::virtio::testing::memory;
    use std::fs::File;

    fn disk() -> Disk {
        Disk::new(File::open("/dev/zero").unwrap(), 512, true).unwrap()
    }

    #[test]
    fn a_slot_is_a_placeholder_until_a_disk_is_in_it_and_after() {
        let io = IoLoop::new("disks", events::channel().unwrap().0).unwrap();
        let slot = || MmioTransport::new(Box::new(EmptySlot), memory(), io.handle()).unwrap();
        let transports = [Arc::new(slot()), Arc::new(slot())];
        let mut slots = DiskSlots::new(4, &transports);
        let ids = || {
            transports.each_ref().map(|transport| {
                let mut id = [0; 4];
                transport.read(register::DEVICE_ID, &mut id);
                u32::from_le_bytes(id)
            })
        };
        let mut connected = Vec::new();
        let mut attach = |slots: &mut DiskSlots| {
            slots.attach(disk(), |number, _| {
                connected.push(number);
                Ok(())
            })
        };
        assert_eq!(ids(), [0, 0]);
        assert_eq!(attach(&mut slots).unwrap(), 4);
        assert_eq!(ids(), [2, 0]);
        assert_eq!(attach(&mut slots).unwrap(), 5);
        assert!(matches!(attach(&mut slots), Err(SlotError::Full(2))));
        slots.detach(4).unwrap();
        assert_eq!(ids(), [0, 2]);
        for none in [3, 4, 6, u32::MAX] {
            assert!(matches!(slots.detach(none), Err(SlotError::NoDisk(number)) if number == none));
        }
        assert_eq!(attach(&mut slots).unwrap(), 4);
        assert_eq!(connected, [4, 5]);
    }
}
