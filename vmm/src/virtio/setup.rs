//! A queue as its driver describes it, before it is checked.

use virtio_queue::{Queue, QueueState, QueueT};

/// One queue as the driver programmed it, and how far it was served (virtio 1.3 §2.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// QueueSize as written; checked when the device is activated.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Index of the available entry that is served next.
    pub next_available: u16,
    /// Index of the used entry that is written next.
    pub next_used: u16,
}

impl QueueSetup {
    /// The queue, for the worker. Size and alignment are checked, memory is not.
    ///
    /// # Errors
    /// When size or alignment break the rules (virtio 1.3 §2.7).
    pub fn to_queue(&self, max_size: u16, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
    }

    /// Notes how far the worker came.
    pub fn take_back(&mut self, queue: &Queue) {
        self.next_available = queue.next_avail();
        self.next_used = queue.next_used();
    }
}
