//! From a `MachineConfig` to the machine's virtio devices, with everything opened that they need.

use super::balloon::Balloon;
use super::fs::SharedDir;
use super::rng::Rng;
use super::slots::{EmptySlot, SlotLoops, Slots};
use super::vsock::{Connector, Vsock};
use crate::arch::x86_64::layout;
use crate::events::{self, EventReceiver, EventSender};
use crate::virtio::VirtioDevice;
use crate::virtio::io_loop::IoLoop;
use crate::virtio::mmio::MmioTransport;
use crate::virtio::registers::RegisterPages;
use crate::virtio::starter::Starter;
use protocol::machine::{FsConfig, MachineConfig};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Devices of which nothing runs yet.
pub struct Built {
    /// The devices.
    pub devices: Devices,
    /// The loops of their workers; to be spawned once the process is confined. A worker that is
    /// activated earlier waits.
    pub loops: Vec<(Role, IoLoop)>,
    /// What starts disks' threads, to be spawned as well; none without slots.
    pub starter: Option<Starter>,
}

/// What the workers of a loop do, which says what system calls its thread may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Anything but what follows.
    Io,
    /// Network interfaces.
    Network,
}

/// The virtio devices of a machine.
pub struct Devices {
    /// The devices behind their registers, in the order in which they get addresses and interrupts:
    /// rng, balloon, vsock, shared directories, slots.
    pub transports: Vec<Arc<MmioTransport>>,
    /// What the devices report: streams that the guest opened, and faults.
    pub events: EventReceiver,
    /// Joins sockets to ports of the guest; `None` without a vsock device.
    pub vsock: Option<Connector>,
    /// Where disks and network interfaces go.
    pub slots: Slots,
    /// What the guest reads of their registers.
    pub registers: RegisterPages,
}

/// Why a device can't be built. The display names the thing; see [`BuildError::remedy`].
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No more descriptors, or the like.
    #[error("set up device {device}")]
    Resources {
        /// Which device.
        device: &'static str,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
    /// A shared directory's configuration can't be used.
    #[error("shared directory {tag:?}: {reason}")]
    SharedDir {
        /// The mount tag.
        tag: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A context id that no guest may have (virtio 1.3 §5.10.4).
    #[error("vsock context id {0} is reserved")]
    BadCid(u32),
}

impl BuildError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Resources { .. } => "raise the limit of open files (RLIMIT_NOFILE) of the VMM",
            Self::SharedDir { .. } => {
                "give a tag of 1 to 36 bytes and the index of a connected vhost-user socket"
            }
            Self::BadCid(_) => "use a context id of 3 or more",
        }
    }
}

/// Builds all devices. `fds` are the descriptors that came with the configuration.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    config: &MachineConfig,
    fds: Vec<OwnedFd>,
    memory: &GuestMemoryMmap,
) -> Result<Built, BuildError> {
    let (sender, events) = events::channel().map_err(|e| resources("events", e))?;
    let registers = RegisterPages::new(layout::VIRTIO_IRQS.len());
    let registers = registers.map_err(|e| resources("registers", e))?;
    let mut builder =
        Builder { memory, registers, sender, transports: Vec::new(), loops: Vec::new() };
    let shared = builder.new_loop(Role::Io, "io")?;
    builder.add("rng", Box::new(Rng), shared)?;
    builder.add("balloon", Box::new(Balloon), shared)?;
    let mut vsock = None;
    if let Some(config) = &config.vsock {
        if config.guest_cid < 3 || config.guest_cid == u32::MAX {
            return Err(BuildError::BadCid(config.guest_cid));
        }
        let ports = config.host_ports.clone();
        let (device, connector) = Vsock::new(config.guest_cid, ports, builder.sender.clone())
            .map_err(|e| resources("vsock", e))?;
        builder.add("vsock", Box::new(device), shared)?;
        vsock = Some(connector);
    }
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    for dir in &config.shared_dirs {
        builder.add_shared_dir(dir, &mut fds)?;
    }
    let first = builder.transports.len();
    let (slot_loops, starter) = builder.add_slots(config.slots, shared)?.unzip();
    let Builder { transports, loops, registers, .. } = builder;
    let slots = Slots::new(first as u32, &transports[first..], slot_loops);
    Ok(Built { devices: Devices { transports, events, vsock, slots, registers }, loops, starter })
}

fn resources(device: &'static str, source: io::Error) -> BuildError {
    BuildError::Resources { device, source }
}

struct Builder<'a> {
    memory: &'a GuestMemoryMmap,
    registers: RegisterPages,
    sender: EventSender,
    transports: Vec<Arc<MmioTransport>>,
    loops: Vec<(Role, IoLoop)>,
}

impl Builder<'_> {
    /// Adds a loop; returns its index.
    fn new_loop(&mut self, role: Role, name: &'static str) -> Result<usize, BuildError> {
        let io = IoLoop::new(name, self.sender.clone()).map_err(|e| resources(name, e))?;
        self.loops.push((role, io));
        Ok(self.loops.len() - 1)
    }

    fn add(
        &mut self,
        name: &'static str,
        device: Box<dyn VirtioDevice>,
        io: usize,
    ) -> Result<(), BuildError> {
        let page = self.registers.page(self.transports.len());
        let io = self.loops[io].1.handle();
        let transport = MmioTransport::new(page, device, self.memory.clone(), io)
            .map_err(|e| resources(name, e))?;
        self.transports.push(Arc::new(transport));
        Ok(())
    }

    /// A shared directory has a loop of its own: the handshake with its server blocks.
    fn add_shared_dir(
        &mut self,
        config: &FsConfig,
        fds: &mut [Option<OwnedFd>],
    ) -> Result<(), BuildError> {
        let refuse = |reason| BuildError::SharedDir { tag: config.tag.clone(), reason };
        let socket = fds
            .get_mut(config.socket_fd)
            .and_then(Option::take)
            .ok_or_else(|| refuse("its socket did not come with the configuration"))?;
        let dir = SharedDir::new(&config.tag, socket)
            .ok_or_else(|| refuse("the tag is empty or longer than 36 bytes"))?;
        let io = self.new_loop(Role::Io, "fs")?;
        self.add("fs", Box::new(dir), io)
    }

    /// Interfaces have one loop together, disks each their own, once they are there. No worker of an empty slot will run
    /// in loop `none`.
    fn add_slots(
        &mut self,
        count: u32,
        none: usize,
    ) -> Result<Option<(SlotLoops, Starter)>, BuildError> {
        if count == 0 {
            return Ok(None);
        }
        (0..count).try_for_each(|_| self.add("slot", Box::new(EmptySlot), none))?;
        let network = self.new_loop(Role::Network, "net")?;
        let (starter, network) = (Starter::default(), self.loops[network].1.handle());
        let (threads, events) = (starter.threads(), self.sender.clone());
        Ok(Some((SlotLoops { threads, events, network }, starter)))
    }
}
