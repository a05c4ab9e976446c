//! Virtio 1.3: the transport's view of a device, and the worker that serves its queues.
//!
//! A device is two objects: the *front* ([`VirtioDevice`]: features, configuration space; called by
//! vCPU threads) and the *worker* ([`Worker`]: queues and backend; owned by one I/O thread, without
//! locks). `activate` turns the first into the second; [`Worker::stop`] gives the queues back to the
//! transport and the backend back to the front, so that a pause is a stop and a resume is another
//! activation with the same queues.

pub mod chain;
mod handover;
pub mod interrupt;
pub mod io_loop;
pub mod iovec;
pub mod messages;
pub mod mmio;
pub mod queue;
pub mod registers;
pub mod setup;
pub mod starter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
mod watcher;

use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use crate::events::WorkerError;
pub use queue::ActiveQueue;
pub use watcher::Watcher;

/// The driver accepts virtio 1.0 and later; without it no device is activated (virtio 1.3 §6).
pub const F_VERSION_1: u64 = 1 << 32;
/// Descriptors may point to tables of descriptors (virtio 1.3 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications and interrupts are suppressed by ring index (virtio 1.3 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// How a device tells the driver of used buffers, and that it is broken (virtio 1.3 §4.2.2, InterruptStatus).
pub trait Interrupt: Send + Sync {
    /// A used buffer is waiting.
    fn signal_used(&self);
    /// The device is broken: sets `DEVICE_NEEDS_RESET` (virtio 1.3 §2.1.2) and tells the driver.
    fn signal_needs_reset(&self);
    /// A descriptor by which another process raises the interrupt for used buffers itself.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    fn share_used(&self) -> std::io::Result<EventFd>;
}

/// What a device gets at DRIVER_OK.
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// One entry per queue, in the device's order; `None` where the driver left a queue disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// To the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that both sides accepted.
    pub features: u64,
}

impl Activation {
    /// Takes queue `index`.
    ///
    /// # Errors
    /// [`ActivateError::MissingQueue`] when the driver left it disabled.
    pub fn take_queue(&mut self, index: usize) -> Result<ActiveQueue, ActivateError> {
        self.queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::MissingQueue(index))
    }
}

/// Why a device could not be activated: the transport answers with `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device can't work without.
    #[error("queue {0} is not set up")]
    MissingQueue(usize),
    /// A queue that the driver made ready can't be one (virtio 1.3 §2.7).
    #[error("queue {index} is not usable: {reason}")]
    BadQueue {
        /// Which queue.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The backend is gone or refused.
    #[error("backend")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The front of a device.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.3 §5).
    fn device_type(&self) -> u32;
    /// Largest size of each queue, a power of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// Whether nobody waits for the driver's notifications of a queue: then KVM is not asked to make them an
    /// event, which takes longer than the exits of the few that come.
    fn is_quiet(&self, _queue: usize) -> bool {
        false
    }
    /// Features offered; `VIRTIO_F_VERSION_1` is added by the transport.
    fn features(&self) -> u64;
    /// Reads the configuration space; what lies outside reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; ignored by most devices.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready, or the machine goes on after a pause: hands over the queues, gets the
    /// worker to be run. Must not block: what may take time belongs in [`Worker::start`].
    ///
    /// # Errors
    /// See [`ActivateError`].
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;
    /// The driver reset the device, after its worker stopped: forgets what belonged to the driver.
    fn reset(&mut self) {}
}

/// The data path of an activated device, run by an I/O loop.
pub trait Worker: Send {
    /// First call, on the I/O thread: registers the descriptors to watch, and serves what is waiting.
    ///
    /// # Errors
    /// As [`Self::handle`].
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError>;
    /// A watched descriptor is ready: `events` are epoll's.
    ///
    /// # Errors
    /// [`WorkerError`]: the loop parks the worker and signals `DEVICE_NEEDS_RESET`.
    fn handle(
        &mut self,
        token: u32,
        events: u32,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), WorkerError>;
    /// Ends what another process does with the queues: what of [`Self::stop`] may take time. If the one who asked
    /// for the stop has given up meanwhile, [`Self::start`] follows instead.
    fn quiesce(&mut self) {}
    /// Ends the data path, after [`Self::quiesce`]: gives the queues back to the transport and the backend to the front,
    /// for a reset or a pause.
    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>>;
}
