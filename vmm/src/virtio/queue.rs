//! One virtqueue as a worker sees it (virtio 1.3 §2.7).

use super::chain::{self, Chain, ChainError};
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// One queue as the driver set it up, frozen at activation, and the eventfd of its notifications.
pub struct ActiveQueue {
    /// The queue; its addresses and size were checked when the device was activated.
    pub queue: Queue,
    /// Becomes readable when the driver notifies (an ioeventfd on QueueNotify).
    pub notify: EventFd,
    /// The driver's index when it was read last: up to it nobody has to look again.
    available: Wrapping<u16>,
    /// Chains given back since the driver was last asked whether it wants to hear of it.
    given: Wrapping<u16>,
}

impl ActiveQueue {
    /// A queue of which nothing has been taken yet.
    pub fn new(queue: Queue, notify: EventFd) -> Self {
        let available = Wrapping(queue.next_avail());
        Self { queue, notify, available, given: Wrapping(0) }
    }

    /// Takes the next available chain, checked and copied; `None` when there is none.
    ///
    /// # Errors
    /// [`ChainError`] when ring or chain break the rules. The device needs a reset then: which
    /// descriptors belong to whom is no longer known.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, ChainError> {
        let (next, size) = (Wrapping(self.queue.next_avail()), self.queue.size());
        if next == self.available {
            let index = self.queue.avail_idx(memory, Ordering::Acquire);
            let available = index.map_err(ChainError::Ring)?;
            if (available - next).0 > size {
                return Err(ChainError::Ring(Error::InvalidAvailRingIndex));
            }
            self.available = available;
            if next == available {
                return Ok(None);
            }
        }
        let entry = self.queue.avail_ring() + 4 + 2 * u64::from(next.0 % size);
        let head: u16 = memory.load(GuestAddress(entry), Ordering::Relaxed)?;
        self.queue.set_next_avail((next + Wrapping(1)).0);
        Chain::walk(memory, self.queue.desc_table(), size, u16::from_le(head)).map(Some)
    }

    /// Goes on where others have got to who served it: at this entry of the available ring, and where the used ring, as it
    /// lies in memory, ends.
    pub fn go_on_at(&mut self, memory: &GuestMemoryMmap, next: u16) {
        self.queue.set_next_avail(next);
        self.available = Wrapping(next);
        if let Ok(used) = self.queue.used_idx(memory, Ordering::Acquire) {
            self.queue.set_next_used(used.0);
        }
    }

    /// Puts the chain popped last back, to be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.set_next_avail((Wrapping(self.queue.next_avail()) - Wrapping(1)).0);
    }

    /// Returns a chain to the driver, `written` bytes of it filled in.
    ///
    /// # Errors
    /// [`ChainError`] when the used ring can't be written.
    pub fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), ChainError> {
        self.complete_together(memory, [(head, written)])
    }

    /// Returns chains to the driver, each with the bytes of it that are filled in. It sees none before it can see all.
    ///
    /// # Errors
    /// [`ChainError`] when the used ring can't be written.
    pub fn complete_together(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), ChainError> {
        let mut next = Wrapping(self.queue.next_used());
        for (head, written) in chains {
            let entry = self.queue.used_ring() + 4 + 8 * u64::from(next.0 % self.queue.size());
            let element = u64::from(written) << 32 | u64::from(head);
            chain::write(memory, GuestAddress(entry), &element.to_le_bytes())?;
            next += 1;
        }
        self.given += next - Wrapping(self.queue.next_used());
        self.queue.set_next_used(next.0);
        let index = GuestAddress(self.queue.used_ring() + 2);
        Ok(memory.store(next.0.to_le(), index, Ordering::Release)?)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call (§2.7.10).
    ///
    /// # Errors
    /// [`ChainError`] when the available ring can't be read.
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ChainError> {
        let given = std::mem::take(&mut self.given);
        if given.0 == 0 || !self.queue.event_idx_enabled() {
            return Ok(given.0 != 0);
        }
        // The driver sees what it is given before its wish is read: otherwise both could wait.
        fence(Ordering::SeqCst);
        let wish = self.queue.avail_ring() + 4 + 2 * u64::from(self.queue.size());
        let wish: u16 = memory.load(GuestAddress(wish), Ordering::Relaxed)?;
        let wish = Wrapping(u16::from_le(wish));
        Ok(Wrapping(self.queue.next_used()) - wish - Wrapping(1) < given)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{TestQueue, in_both_modes, memory};

    #[test]
    fn nobody_is_interrupted_for_nothing() {
        in_both_modes(|| {
            let memory = memory();
            let mut driver = TestQueue::new(&memory, 0x10_0000, 16);
            let mut queue = driver.active();
            assert!(!queue.wants_interrupt(&memory).unwrap(), "nothing came");
            for _ in 0..2 {
                driver.send(&[], &[8]);
            }
            let heads = [(); 2].map(|()| queue.pop(&memory).unwrap().unwrap().head());
            assert!(!queue.wants_interrupt(&memory).unwrap(), "nothing is done");
            queue.complete_together(&memory, heads.map(|head| (head, 8))).unwrap();
            assert!(queue.wants_interrupt(&memory).unwrap());
            assert!(!queue.wants_interrupt(&memory).unwrap(), "it is told already");
            assert_eq!(heads.map(|_| driver.used().unwrap().0), heads);
        });
    }

    #[test]
    fn a_ring_is_taken_to_its_end_and_begun_again() {
        in_both_modes(|| {
            let memory = memory();
            let mut driver = TestQueue::new(&memory, 0x10_0000, 4);
            let mut queue = driver.active();
            for round in 0..11 {
                for _ in 0..3 {
                    driver.send(&[], &[1]);
                }
                for i in 0..3 {
                    let head = queue.pop(&memory).unwrap().unwrap().head();
                    assert_eq!(head, (3 * round + i) % 4);
                    queue.complete(&memory, head, 1).unwrap();
                    assert_eq!(driver.used(), Some((head, 1)));
                }
                assert_eq!(queue.pop(&memory).unwrap(), None);
            }
        });
    }

    #[test]
    fn what_others_have_served_is_not_served_again() {
        let memory = memory();
        let mut driver = TestQueue::new(&memory, 0x10_0000, 4);
        let [mut queue, mut others] = [driver.active(), driver.active()];
        (0..3).for_each(|_| drop(driver.send(&[], &[1])));
        assert!(queue.pop(&memory).unwrap().is_some());
        for _ in 0..3 {
            let head = others.pop(&memory).unwrap().unwrap().head();
            others.complete(&memory, head, 1).unwrap();
        }
        queue.go_on_at(&memory, 3);
        assert_eq!(queue.pop(&memory).unwrap(), None);
        driver.send(&[], &[1]);
        let head = queue.pop(&memory).unwrap().unwrap().head();
        queue.complete(&memory, head, 1).unwrap();
        let used: Vec<_> = std::iter::from_fn(|| driver.used()).map(|(head, _)| head).collect();
        assert_eq!(used, [0, 1, 2, 3]);
    }

    #[test]
    fn more_chains_than_the_ring_holds_are_refused() {
        let memory = memory();
        let driver = TestQueue::new(&memory, 0x10_0000, 4);
        let mut queue = driver.active();
        driver.set_available_index(5);
        for _ in 0..2 {
            assert!(matches!(queue.pop(&memory), Err(ChainError::Ring(_))));
        }
    }
}
