//! One virtqueue as a worker sees it (virtio 1.3 §2.7).

use super::chain::{Chain, ChainError};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// One queue as the driver set it up, frozen at activation, and the eventfd of its notifications.
pub struct ActiveQueue {
    /// The queue; its addresses and size were checked when the device was activated.
    pub queue: Queue,
    /// Becomes readable when the driver notifies (an ioeventfd on QueueNotify).
    pub notify: EventFd,
}

impl ActiveQueue {
    /// Takes the next available chain, checked and copied; `None` when there is none.
    ///
    /// # Errors
    /// [`ChainError`] when ring or chain break the rules. The device needs a reset then: which
    /// descriptors belong to whom is no longer known.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, ChainError> {
        let (table, size) = (self.queue.desc_table(), self.queue.size());
        let mut available = self.queue.iter(memory).map_err(ChainError::Ring)?;
        let Some(head) = available.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        Chain::walk(memory, table, size, head).map(Some)
    }

    /// Puts the chain popped last back, to be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain to the driver, `written` bytes of it filled in.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the used ring can't be written.
    pub fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), ChainError> {
        self.queue.add_used(memory, head, written).map_err(ChainError::Ring)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the available ring can't be read.
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ChainError> {
        self.queue.needs_notification(memory).map_err(ChainError::Ring)
    }

    /// Asks for a notification of the next chain; `true` when one became available meanwhile, so
    /// that the caller goes on popping.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the rings can't be accessed.
    pub fn enable_notification(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ChainError> {
        self.queue.enable_notification(memory).map_err(ChainError::Ring)
    }

    /// Tells the driver not to notify while the worker is popping anyway.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the used ring can't be written.
    pub fn disable_notification(&mut self, memory: &GuestMemoryMmap) -> Result<(), ChainError> {
        self.queue.disable_notification(memory).map_err(ChainError::Ring)
    }

    /// Notifies the worker as the driver would: to go on after others had their turn.
    pub fn notify_again(&self) {
        // Fails only when the counter is full: then it is readable.
        let _ = self.notify.write(1);
    }

    /// Clears the notification; there may have been none.
    pub fn drain_notification(&self) {
        // Non-blocking: the only error is that the counter is zero already.
        let _ = self.notify.read();
    }
}
