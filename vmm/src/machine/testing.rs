//! A machine without a guest, for tests of those around it.

use super::Machine;
use crate::bus::Bus;
use crate::devices::build::Devices;
use crate::devices::console;
use crate::devices::slots::Slots;
use crate::events::{self, EventSender};
use crate::exit::ExitNotice;
use crate::memory::{BLOCK, GuestRam};
use crate::vcpu::{Gate, Surroundings};
use crate::virtio::registers::RegisterPages;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use vm_memory::{GuestMemory as _, GuestMemoryRegion as _};

/// Bytes that it has from the start: a whole huge page, as that is where in its file the room begins.
pub const MEMORY: u64 = 2 << 20;

/// A machine of [`MEMORY`] and room for so many blocks, the file of that, and what reports its devices' events.
pub fn bare(blocks: u64) -> (Machine, File, EventSender) {
    let kvm = crate::kvm::open_at(Path::new(crate::kvm::DEVICE)).unwrap();
    let vm = Arc::new(crate::kvm::create_vm(&kvm).unwrap());
    let ram = GuestRam::with_room(MEMORY, blocks * BLOCK).unwrap();
    ram.register(&vm).unwrap();
    let file = ram.memory().iter().next().unwrap().file_offset().unwrap().file().try_clone();
    let exit = Arc::new(ExitNotice::new().unwrap());
    let (_, console) = console::open(None, exit.clone()).unwrap();
    let (sender, events) = events::channel().unwrap();
    let slots = Slots::new(0, &[], None);
    let registers = RegisterPages::new(1).unwrap();
    let devices = Devices { transports: Vec::new(), events, vsock: None, slots, registers };
    let (ports, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
    let around = Surroundings { ports, mmio, exit, gate: Arc::new(Gate::new(0)) };
    let machine = Machine { vm, ram, vcpus: Vec::new(), least_vcpus: 0, around, console, devices };
    (machine, file.unwrap(), sender)
}
