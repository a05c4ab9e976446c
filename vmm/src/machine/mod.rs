//! One machine: built by [`build`], started once, paused and resumed, ended by the process's end.
//!
//! ```text
//!   build ──▶ Prepared ──start──▶ Machine: paused ◀──pause / resume──▶ running
//! ```
//!
//! Between the two the process confines itself: [`Prepared`] has opened everything and runs no
//! thread; the threads of [`Machine`] start with their filters of system calls on.

pub mod build;
#[cfg(test)]
pub mod testing;
mod wiring;

use crate::arch::x86_64::layout::VirtioWindow;
use crate::devices::blk::Disk;
use crate::devices::build::{Devices, Role};
use crate::devices::console::ConsoleLog;
use crate::devices::net::Net;
use crate::devices::slots::{Kind, SlotError};
use crate::error::StartError;
use crate::events::EventReceiver;
use crate::exit::ExitNotice;
use crate::memory::{GuestRam, MemoryError};
use crate::seccomp::Filters;
use crate::vcpu::{StuckVcpu, Surroundings, Vcpu};
use crate::virtio::VirtioDevice;
use crate::virtio::io_loop::{IoLoop, LoopStuck};
use crate::virtio::starter::Starter;
use kvm_ioctls::VmFd;
use protocol::control::ExitReason;
use protocol::machine::Size;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long devices may take to stop: what the host's disks take for the requests they are at.
const DEVICES_PATIENCE: Duration = Duration::from_secs(5);

/// A machine that has everything it needs and no thread yet.
pub struct Prepared {
    machine: Machine,
    /// Of the devices' workers.
    loops: Vec<(Role, IoLoop)>,
    /// Of disks' threads.
    starter: Option<Starter>,
}

impl Prepared {
    /// Starts the threads, each under its filter. The guest does not run yet.
    ///
    /// # Errors
    /// [`StartError::Host`] when a thread can't be started.
    pub fn start(self, filters: &Filters) -> Result<Machine, StartError> {
        let Self { mut machine, loops, starter } = self;
        let around = &machine.around;
        for (role, io_loop) in loops {
            let filter = match role {
                Role::Io => &filters.io,
                Role::Network => &filters.network,
            };
            let (filter, exit) = (filter.clone(), around.exit.clone());
            let confine = move || {
                // A device without its thread would hang the guest: better an end with a reason.
                filter.apply().map_err(io::Error::other).inspect_err(|e| {
                    exit.end(ExitReason::Internal(format!("an I/O thread can't be confined: {e}")));
                })
            };
            io_loop.spawn(Box::new(confine)).map_err(StartError::host("a thread for devices"))?;
        }
        if let Some(starter) = starter {
            let (own, disk) = (filters.starter.clone(), filters.disk.clone());
            let exit = around.exit.clone();
            let at_first = move || own.apply().map_err(io::Error::other);
            let confine = move || {
                disk.apply().map_err(io::Error::other).inspect_err(|e| {
                    exit.end(ExitReason::Internal(format!(
                        "a disk's thread can't be confined: {e}"
                    )));
                })
            };
            starter
                .spawn(Box::new(at_first), Arc::new(confine))
                .map_err(StartError::host("a thread that starts others"))?;
        }
        for vcpu in &mut machine.vcpus {
            let filter = filters.vcpu.clone();
            vcpu.spawn(around.clone(), move || filter.apply().map_err(io::Error::other))
                .map_err(StartError::host("a thread for a vCPU"))?;
        }
        Ok(machine)
    }
}

/// Why a machine does not pause; it goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] StuckVcpu),
    /// A device.
    #[error(transparent)]
    Device(#[from] LoopStuck),
}

/// Why a machine does not get another size; it goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It does not stop.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A machine with its threads.
pub struct Machine {
    vm: Arc<VmFd>,
    ram: GuestRam,
    vcpus: Vec<Vcpu>,
    /// How many of them run in any case.
    least_vcpus: usize,
    around: Surroundings,
    console: ConsoleLog,
    devices: Devices,
}

impl Machine {
    /// Lets the vCPUs run: first start, or after [`Machine::pause`].
    pub fn resume(&self) {
        for transport in &self.devices.transports {
            transport.resume();
        }
        self.around.gate.open();
    }

    /// Stops vCPUs, then devices, where they are; waits until they have stopped. vCPUs that have ended are
    /// stopped.
    ///
    /// # Errors
    /// [`PauseError`]; what was stopped goes on then.
    pub fn pause(&self) -> Result<(), PauseError> {
        let ran = self.around.gate.is_open();
        self.stop_all().inspect_err(|_| {
            if ran {
                self.resume();
            }
        })
    }

    fn stop_all(&self) -> Result<(), PauseError> {
        let gate = &self.around.gate;
        gate.close();
        self.vcpus.iter().for_each(Vcpu::kick);
        gate.wait_for_all(self.vcpus.len())?;
        // All devices together: no caller waits for ever.
        let end = Instant::now() + DEVICES_PATIENCE;
        for transport in &self.devices.transports {
            transport.pause(end.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// Lets the machine use so much; gives the guest address of added memory. For a change of memory it
    /// stops for a moment, so that nothing sees half of it. Memory that it loses is for [`Self::free_some`].
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&mut self, size: Size) -> Result<u64, ResizeError> {
        let added = size.added_mib.saturating_mul(1 << 20);
        if added != self.ram.added() {
            let ran = self.around.gate.is_open();
            self.pause()?;
            let outcome = self.ram.set_added(&self.vm, added);
            for transport in &self.devices.transports {
                transport.set_memory(self.ram.memory());
            }
            if ran {
                self.resume();
            }
            outcome?;
        }
        let vcpus = (size.vcpus as usize).max(self.least_vcpus);
        self.around.gate.admit(vcpus);
        self.vcpus.iter().skip(vcpus).for_each(Vcpu::kick);
        Ok(self.ram.added_at())
    }

    /// Gives a part of the memory that it has lost back to the host; whether there is more.
    pub fn free_some(&mut self) -> bool {
        self.ram.free_block();
        self.ram.has_lost()
    }

    /// How it ends.
    pub fn exit(&self) -> &ExitNotice {
        &self.around.exit
    }

    /// What the devices have to tell.
    pub fn events(&self) -> &EventReceiver {
        &self.devices.events
    }

    /// What the guest prints.
    pub fn console(&mut self) -> &mut ConsoleLog {
        &mut self.console
    }

    /// Readable when the guest has printed something.
    pub fn console_fd(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    /// Joins a stream of the host to a vsock port of the guest. It is closed when there is no such
    /// device, or when more streams than it can take are waiting for the guest.
    pub fn connect(&self, port: u32, stream: OwnedFd) {
        if let Some(vsock) = &self.devices.vsock {
            drop(vsock.connect(port, stream));
        }
    }

    /// Puts a disk of these files, with so many bytes of each, into an empty slot; gives the device's number.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn attach_disk(
        &mut self,
        files: Vec<(File, u64)>,
        read_only: bool,
    ) -> Result<u32, SlotError> {
        let threads = self.devices.slots.threads()?;
        self.attach(Kind::Disk, Box::new(Disk::new(files, read_only, threads)?))
    }

    /// Puts a network interface on `tap` into an empty slot; gives the device's number. See [`Net::new`], and of `vhost`
    /// [`Net::served_by_host`].
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn attach_network(
        &mut self,
        (tap, vhost): (File, Option<File>),
        mac: [u8; 6],
        mtu: u16,
    ) -> Result<u32, SlotError> {
        let mut net = Net::new(tap, mac, mtu)?;
        if let Some(vhost) = vhost {
            net = net.served_by_host(vhost).map_err(SlotError::Eventfd)?;
        }
        self.attach(Kind::Network, Box::new(net))
    }

    fn attach(&mut self, kind: Kind, device: Box<dyn VirtioDevice>) -> Result<u32, SlotError> {
        let Self { vm, devices, .. } = self;
        devices.slots.attach(kind, device, |number, transport, queues| {
            // It has a place since the machine was built.
            let Some(place) = VirtioWindow::of(number) else { return Ok(()) };
            wiring::connect_queues(vm, transport, place, queues)
        })
    }

    /// Takes the disk out of the device with this number.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn detach_disk(&mut self, device: u32) -> Result<(), SlotError> {
        self.devices.slots.detach(Kind::Disk, device)
    }

    /// Takes the network interface out of the device with this number, and with it goes its tap.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn detach_network(&mut self, device: u32) -> Result<(), SlotError> {
        self.devices.slots.detach(Kind::Network, device)
    }

    /// Counters of all parts, by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.vcpus.iter().flat_map(Vcpu::counters).collect()
    }
}
