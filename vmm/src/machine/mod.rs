//! One machine: built by [`build`], started once, paused and resumed, ended by the process's end.
//!
//! ```text
//!   build ──▶ Prepared ──start──▶ Machine: paused ◀──pause / resume──▶ running
//! ```
//!
//! Between the two the process confines itself: [`Prepared`] has opened everything and runs no
//! thread; the threads of [`Machine`] start with their filters of system calls on.

pub mod build;
pub mod snapshot;
mod wiring;

use crate::devices::blk::Disk;
use crate::devices::build::Devices;
use crate::devices::console::ConsoleLog;
use crate::devices::serial::SerialPort;
use crate::devices::slots::SlotError;
use crate::error::StartError;
use crate::events::EventReceiver;
use crate::exit::ExitNotice;
use crate::memory::{GuestRam, MemoryError};
use crate::seccomp::Filters;
use crate::vcpu::{StuckVcpu, Surroundings, Vcpu};
use crate::virtio::io_loop::LoopStuck;
use kvm_ioctls::VmFd;
use protocol::control::ExitReason;
use protocol::machine::Size;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A machine that has everything it needs and no thread yet.
pub struct Prepared {
    vm: VmFd,
    ram: GuestRam,
    vcpus: Vec<Vcpu>,
    /// How many of them run in any case.
    least_vcpus: usize,
    around: Surroundings,
    serial: Arc<SerialPort>,
    console: ConsoleLog,
    devices: Devices,
}

impl Prepared {
    /// Starts the threads, each under its filter. The guest does not run yet.
    ///
    /// # Errors
    /// [`StartError::Host`] when a thread can't be started.
    pub fn start(mut self, filters: &Filters) -> Result<Machine, StartError> {
        for io_loop in self.devices.loops.drain(..) {
            let (filter, exit) = (filters.io.clone(), self.around.exit.clone());
            let confine = move || {
                // A device without its thread would hang the guest: better an end with a reason.
                filter.apply().map_err(io::Error::other).inspect_err(|e| {
                    exit.end(ExitReason::Internal(format!("an I/O thread can't be confined: {e}")));
                })
            };
            io_loop.spawn(Box::new(confine)).map_err(StartError::host("a thread for devices"))?;
        }
        for vcpu in &mut self.vcpus {
            let filter = filters.vcpu.clone();
            vcpu.spawn(self.around.clone(), move || filter.apply().map_err(io::Error::other))
                .map_err(StartError::host("a thread for a vCPU"))?;
        }
        Ok(Machine { parts: self })
    }
}

/// Why a machine does not pause.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] StuckVcpu),
    /// A device.
    #[error(transparent)]
    Device(#[from] LoopStuck),
}

/// Why a machine does not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It is of no use any more.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// It goes on as it was.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A machine with its threads.
pub struct Machine {
    parts: Prepared,
}

impl Machine {
    /// Lets the vCPUs run: first start, or after [`Machine::pause`].
    pub fn resume(&self) {
        for transport in &self.parts.devices.transports {
            transport.resume();
        }
        self.parts.around.gate.open();
    }

    /// Stops vCPUs, then devices, where they are; waits until they have stopped.
    ///
    /// # Errors
    /// [`PauseError`]; the machine is then of no use any more.
    pub fn pause(&self) -> Result<(), PauseError> {
        let gate = &self.parts.around.gate;
        gate.close();
        for vcpu in &self.parts.vcpus {
            vcpu.kick();
        }
        gate.wait_for_all(self.parts.vcpus.len())?;
        for transport in &self.parts.devices.transports {
            transport.pause()?;
        }
        Ok(())
    }

    /// Lets the machine use so much; gives the guest address of added memory. For a change of memory it
    /// stops for a moment, so that nothing sees half of it.
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&mut self, size: Size) -> Result<u64, ResizeError> {
        let added = size.added_mib.saturating_mul(1 << 20);
        if added != self.parts.ram.added() {
            let ran = self.parts.around.gate.is_open();
            self.pause()?;
            let parts = &mut self.parts;
            let outcome = parts.ram.set_added(&parts.vm, added);
            for transport in &parts.devices.transports {
                transport.set_memory(parts.ram.memory());
            }
            if ran {
                self.resume();
            }
            outcome?;
        }
        let vcpus = (size.vcpus as usize).max(self.parts.least_vcpus);
        self.parts.around.gate.admit(vcpus);
        self.parts.vcpus.iter().skip(vcpus).for_each(Vcpu::kick);
        Ok(self.parts.ram.added_at())
    }

    /// How it ends.
    pub fn exit(&self) -> &ExitNotice {
        &self.parts.around.exit
    }

    /// What the devices have to tell.
    pub fn events(&self) -> &EventReceiver {
        &self.parts.devices.events
    }

    /// What the guest prints.
    pub fn console(&mut self) -> &mut ConsoleLog {
        &mut self.parts.console
    }

    /// Readable when the guest has printed something.
    pub fn console_fd(&self) -> BorrowedFd<'_> {
        self.parts.console.as_fd()
    }

    /// Joins a stream of the host to a vsock port of the guest. It is closed when there is no such
    /// device, or when more streams than it can take are waiting for the guest.
    pub fn connect(&self, port: u32, stream: OwnedFd) {
        if let Some(vsock) = &self.parts.devices.vsock {
            drop(vsock.connect(port, stream));
        }
    }

    /// Puts a disk of so many bytes of `file` into an empty slot; gives the device's number.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn attach_disk(
        &mut self,
        file: File,
        bytes: u64,
        read_only: bool,
    ) -> Result<u32, SlotError> {
        let disk = Disk::new(file, bytes, read_only)?;
        let Prepared { vm, devices, .. } = &mut self.parts;
        devices.slots.attach(disk, |number, transport| {
            let place = wiring::place(number).ok_or(SlotError::NoDisk(number))?;
            Ok(wiring::connect(vm, transport, place)?)
        })
    }

    /// Takes the disk out of the device with this number.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn detach_disk(&mut self, device: u32) -> Result<(), SlotError> {
        self.parts.devices.slots.detach(device)
    }

    /// Counters of all parts, by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.parts.vcpus.iter().flat_map(Vcpu::counters).collect()
    }
}
