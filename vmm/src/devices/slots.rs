//! Places for devices that come and go while the machine runs: disks and network interfaces.
//!
//! A slot is a virtio-mmio device from the start, as its window and interrupt are announced on the kernel's
//! command line. Empty it has device id 0: a placeholder, which drivers leave alone (virtio 1.3 §4.2.3.1).
//! The guest binds its driver again, by sysfs, when it is told of a device.

use super::blk::DiskError;
use super::net::{self, OddMtu};
use crate::events::EventSender;
use crate::kvm::KvmError;
use crate::virtio::io_loop::{IoHandle, IoLoop, LoopStuck};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::starter::Threads;
use crate::virtio::{ActivateError, Activation, VirtioDevice, Worker};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The device without a function; it can be told to be what it becomes only by [`Slots`].
pub struct EmptySlot;

impl VirtioDevice for EmptySlot {
    fn device_type(&self) -> u32 {
        0
    }

    /// As many as a network interface, which has the most: notifications are set up before there is a device.
    fn queue_max_sizes(&self) -> &[u16] {
        &net::QUEUE_SIZES
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

/// Why a device can't be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A disk's size, or what it takes.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk's thread.
    #[error("start a thread for a disk")]
    Thread(#[from] io::Error),
    /// An interface's MTU.
    #[error(transparent)]
    Mtu(#[from] OddMtu),
    /// What an interface is told by.
    #[error("make an eventfd for a network interface")]
    Eventfd(#[source] io::Error),
    /// There is a device in each.
    #[error(
        "each of the machine's {0} slots for disks and network interfaces is taken: raise machine.max_disks (14 at most)"
    )]
    Full(usize),
    /// No slot has that number, or another kind of device is in it.
    #[error("device {device} is no {kind}")]
    Other {
        /// The number.
        device: u32,
        /// What it is not.
        kind: Kind,
    },
    /// KVM does not take its interrupt or notifications.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// What the device does takes too long; it stays.
    #[error(transparent)]
    Stuck(#[from] LoopStuck),
}

/// What can be in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Disk,
    /// A network interface.
    Network,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Network => "network interface",
        })
    }
}

/// In which threads the workers of each kind run.
pub struct SlotLoops {
    /// Disks': each has a loop of its own, and more, as long as it is there: their reads and writes block.
    pub threads: Threads,
    /// What disks' loops report to.
    pub events: EventSender,
    /// Interfaces': nothing blocks, and nothing else shall keep frames waiting.
    pub network: IoHandle,
}

/// The slots of a machine.
pub struct Slots {
    /// The number of the first of them among all devices.
    first: u32,
    /// None: there are no slots.
    loops: Option<SlotLoops>,
    places: Vec<Slot>,
}

struct Slot {
    transport: Arc<MmioTransport>,
    /// How many of its queues are connected; with the first of them its interrupt.
    connected: usize,
    holds: Option<Kind>,
    /// The loop that ends with what the slot holds.
    own: Option<IoHandle>,
}

impl Slots {
    /// Empty ones, which follow `first` other devices.
    pub fn new(first: u32, slots: &[Arc<MmioTransport>], loops: Option<SlotLoops>) -> Self {
        let slot = |transport: &Arc<MmioTransport>| Slot {
            transport: transport.clone(),
            connected: 0,
            holds: None,
            own: None,
        };
        Self { first, loops, places: slots.iter().map(slot).collect() }
    }

    /// The number of the first slot.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// What starts disks' threads.
    ///
    /// # Errors
    /// [`SlotError::Full`]: there are no slots.
    pub fn threads(&self) -> Result<Threads, SlotError> {
        self.loops.as_ref().map(|loops| loops.threads.clone()).ok_or(SlotError::Full(0))
    }

    /// Puts `device` into an empty slot; gives the device's number. Before the first device of a slot that has so many
    /// queues, `connect` is to connect its interrupt, if that is not yet, and the notifications of these queues, which
    /// takes longer than all else of an empty slot.
    ///
    /// # Errors
    /// [`SlotError::Full`], or `connect`'s.
    pub fn attach(
        &mut self,
        kind: Kind,
        device: Box<dyn VirtioDevice>,
        connect: impl FnOnce(u32, &MmioTransport, Range<usize>) -> Result<(), KvmError>,
    ) -> Result<u32, SlotError> {
        let count = self.places.len();
        let mut numbered = (self.first..).zip(&mut self.places);
        let free = numbered.find(|(_, slot)| slot.holds.is_none());
        let (Some((number, slot)), Some(loops)) = (free, &self.loops) else {
            return Err(SlotError::Full(count));
        };
        let queues = device.queue_max_sizes().len();
        if slot.connected < queues {
            connect(number, &slot.transport, slot.connected..queues)?;
            slot.connected = queues;
        }
        let io = match kind {
            Kind::Disk => {
                let mut io = IoLoop::new("disk", loops.events.clone())?;
                let handle = io.handle();
                let run = move || {
                    // A loop without epoll: its disk is stuck from then on, and nothing else.
                    let _ = io.run();
                };
                loops.threads.start("disk", Box::new(run))?;
                slot.own.insert(handle).clone()
            }
            Kind::Network => loops.network.clone(),
        };
        slot.transport.replace(device, io)?;
        slot.holds = Some(kind);
        Ok(number)
    }

    /// Takes the device with this number out, and lets go of its file.
    ///
    /// # Errors
    /// [`SlotError::Other`], or [`SlotError::Stuck`] after five seconds, when it stays.
    pub fn detach(&mut self, kind: Kind, number: u32) -> Result<(), SlotError> {
        let index = number.checked_sub(self.first).map(|index| index as usize);
        let slot = index.and_then(|index| self.places.get_mut(index));
        let slot = slot.filter(|slot| slot.holds == Some(kind));
        let (Some(slot), Some(loops)) = (slot, &self.loops) else {
            return Err(SlotError::Other { device: number, kind });
        };
        slot.transport.replace(Box::new(EmptySlot), loops.network.clone())?;
        slot.holds = None;
        if let Some(io) = slot.own.take() {
            io.exit();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::devices::blk::Disk;
    use crate::devices::net::Net;
    use crate::events;
    use crate::virtio::mmio::register;
    use crate::virtio::starter::Starter;
    use crate::virtio::testing::memory;
    use std::fs::File;

    fn device(kind: Kind) -> Box<dyn VirtioDevice> {
        let file = File::open("/dev/zero").unwrap();
        match kind {
            Kind::Disk => {
                let threads = Starter::default().threads();
                Box::new(Disk::new(vec![(file, 512)], true, threads).unwrap())
            }
            Kind::Network => Box::new(Net::new(file, [2; 6], 1500).unwrap()),
        }
    }

    #[test]
    fn a_slot_is_a_placeholder_until_a_device_is_in_it_and_after() {
        let (events, _receiver) = events::channel().unwrap();
        let network = IoLoop::new("net", events.clone()).unwrap();
        let starter = Starter::default();
        let loops = SlotLoops { threads: starter.threads(), events, network: network.handle() };
        starter.spawn(Box::new(|| Ok(())), Arc::new(|| Ok(()))).unwrap();
        let slot = || {
            let page = crate::virtio::testing::registers();
            MmioTransport::new(page, Box::new(EmptySlot), memory(), network.handle()).unwrap()
        };
        let transports = [Arc::new(slot()), Arc::new(slot())];
        let mut slots = Slots::new(4, &transports, Some(loops));
        let ids = || {
            transports.each_ref().map(|transport| {
                let mut id = [0; 4];
                transport.read(register::DEVICE_ID, &mut id);
                u32::from_le_bytes(id)
            })
        };
        let mut connected = Vec::new();
        let mut attach = |slots: &mut Slots, kind| {
            slots.attach(kind, device(kind), |number, _, queues| {
                connected.push((number, queues));
                Ok(())
            })
        };
        assert_eq!(ids(), [0, 0]);
        assert_eq!(attach(&mut slots, Kind::Disk).unwrap(), 4);
        assert_eq!(ids(), [2, 0]);
        assert_eq!(attach(&mut slots, Kind::Network).unwrap(), 5);
        assert_eq!(ids(), [2, 1]);
        assert!(matches!(attach(&mut slots, Kind::Disk), Err(SlotError::Full(2))));
        for (kind, none) in [
            (Kind::Disk, 3),
            (Kind::Disk, 5),
            (Kind::Network, 4),
            (Kind::Disk, 6),
            (Kind::Network, u32::MAX),
        ] {
            let refused = slots.detach(kind, none);
            assert!(matches!(refused, Err(SlotError::Other { device, .. }) if device == none));
        }
        slots.detach(Kind::Disk, 4).unwrap();
        assert_eq!(ids(), [0, 1]);
        assert!(slots.detach(Kind::Disk, 4).is_err());
        // What is connected stays so.
        assert_eq!(attach(&mut slots, Kind::Network).unwrap(), 4);
        slots.detach(Kind::Network, 4).unwrap();
        assert_eq!(attach(&mut slots, Kind::Disk).unwrap(), 4);
        assert_eq!(connected, [(4, 0..1), (5, 0..2), (4, 1..2)]);
    }

    #[test]
    fn a_machine_without_slots_takes_nothing() {
        let mut slots = Slots::new(4, &[], None);
        let attached = slots.attach(Kind::Disk, device(Kind::Disk), |_, _, _| Ok(()));
        assert!(matches!(attached, Err(SlotError::Full(0))));
    }
}
