//! Virtio 1.3: the transport's view of a device, and the worker that serves its queues.
//!
//! A device is two objects: the *front* ([`VirtioDevice`]: features, configuration space; called by
//! vCPU threads) and the *worker* ([`Worker`]: queues and backend; owned by one I/O thread, without
//! locks). `activate` turns the first into the second, `Worker::stop` gives it back.

use std::os::fd::RawFd;
use std::sync::Arc;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// How a device tells the driver of used buffers and configuration changes (virtio 1.3 §4.2.2, InterruptStatus).
pub trait Interrupt: Send + Sync {
    /// A used buffer is waiting.
    fn signal_used(&self);
    /// The configuration space changed.
    fn signal_config(&self);
    /// The device is broken: sets `DEVICE_NEEDS_RESET` (virtio 1.3 §2.1.2) and tells the driver.
    fn signal_needs_reset(&self);
}

/// One queue as the driver set it up, frozen at activation, and the eventfd of its notifications.
pub struct ActiveQueue {
    /// The queue; already checked by `Queue::is_valid`.
    pub queue: Queue,
    /// Becomes readable when the driver notifies (an ioeventfd on QueueNotify).
    pub notify: EventFd,
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

/// Why a device could not be activated: the transport answers with `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device can't work without.
    #[error("queue {0} is not set up")]
    MissingQueue(usize),
    /// The backend refused.
    #[error("backend")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The front of a device.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.3 §5).
    fn device_type(&self) -> u32;
    /// Largest size of each queue, a power of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// Features offered; `VIRTIO_F_VERSION_1` is added by the transport.
    fn features(&self) -> u64;
    /// Reads the configuration space; what lies outside reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; ignored by most devices.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready: hands over the queues, gets the worker to be run.
    ///
    /// # Errors
    /// See [`ActivateError`].
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;
    /// The device's state besides its queues, for a snapshot: a version and plain data.
    fn save(&self) -> serde_json::Value;
}

/// A worker failed for a reason that lies with the driver or the backend; the device needs a reset.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct WorkerError {
    /// Which device.
    pub device: &'static str,
    /// What happened, for the log.
    pub reason: String,
}

/// The data path of an activated device.
pub trait Worker: Send {
    /// Descriptors to watch, as (fd, epoll events, token); asked again after each `handle`
    /// that returns `true`.
    fn watches(&self) -> Vec<(RawFd, u32, u64)>;
    /// A watched descriptor is ready. `Ok(true)`: the set of watches changed.
    ///
    /// # Errors
    /// [`WorkerError`]: the loop stops the worker and signals `DEVICE_NEEDS_RESET`.
    fn handle(&mut self, token: u64, events: u32) -> Result<bool, WorkerError>;
    /// Ends the data path and gives the queues back, for a reset or a snapshot.
    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>>;
}
