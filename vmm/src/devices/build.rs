//! From a `MachineConfig` to the machine's virtio devices, with everything opened that they need.

use super::events::{self, EventReceiver};
use super::rng::Rng;
use crate::io_loop::IoLoop;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::MmioTransport;
use protocol::machine::MachineConfig;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// The virtio devices of a machine; nothing of them runs yet.
pub struct Devices {
    /// The devices behind their registers, in the order in which they get addresses and interrupts:
    /// rng, vsock, disks, shared directories.
    pub transports: Vec<Arc<MmioTransport>>,
    /// The loops of their workers; to be spawned once the process is confined. A worker that is
    /// activated earlier waits.
    pub loops: Vec<IoLoop>,
    /// What the devices report: streams that the guest opened, and faults.
    pub events: EventReceiver,
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
}

impl BuildError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Resources { .. } => "raise the limit of open files (RLIMIT_NOFILE) of the VMM",
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
) -> Result<Devices, BuildError> {
    let (sender, events) =
        events::channel().map_err(|source| BuildError::Resources { device: "events", source })?;
    let mut builder = Builder { memory, sender, transports: Vec::new(), loops: Vec::new() };
    let shared = builder.new_loop("io")?;
    builder.add("rng", Box::new(Rng), shared)?;
    drop((config, fds));
    let Builder { transports, loops, .. } = builder;
    Ok(Devices { transports, loops, events })
}

struct Builder<'a> {
    memory: &'a GuestMemoryMmap,
    sender: events::EventSender,
    transports: Vec<Arc<MmioTransport>>,
    loops: Vec<IoLoop>,
}

impl Builder<'_> {
    /// Adds a loop; returns its index.
    fn new_loop(&mut self, name: &'static str) -> Result<usize, BuildError> {
        let io = IoLoop::new(name, self.sender.clone())
            .map_err(|source| BuildError::Resources { device: name, source })?;
        self.loops.push(io);
        Ok(self.loops.len() - 1)
    }

    fn add(
        &mut self,
        name: &'static str,
        device: Box<dyn VirtioDevice>,
        io: usize,
    ) -> Result<(), BuildError> {
        let transport = MmioTransport::new(device, self.memory.clone(), self.loops[io].handle())
            .map_err(|source| BuildError::Resources { device: name, source })?;
        self.transports.push(Arc::new(transport));
        Ok(())
    }
}
