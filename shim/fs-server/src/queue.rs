//! One virtqueue of FUSE requests.

use crate::file_system::Files;
use crate::memory::{Memory, Regions};
use crate::queue_error::QueueError;
use crate::slow::{Request, Slow};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryLoadGuard};

/// Requests served before the control socket gets its turn.
const BATCH: usize = 64;

/// Whether a queue has to be looked at again without a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until the guest notifies.
    Idle,
    /// There may be more requests.
    More,
}

/// A virtqueue and how its two sides notify each other.
#[derive(Debug)]
pub struct RequestQueue {
    /// The rings.
    pub ring: Queue,
    /// The guest has made requests available.
    pub(crate) kick: Option<File>,
    /// Requests have been answered.
    pub(crate) call: Option<File>,
    pub(crate) enabled: bool,
    event_idx: bool,
    /// The guest broke the rules; nothing is read from the queue until it is set up anew.
    broken: bool,
}

impl RequestQueue {
    /// A queue of at most so many descriptors, a power of two, that is not set up.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn new(max_size: u16) -> Result<Self, virtio_queue::Error> {
        let ring = Queue::new(max_size)?;
        Ok(Self { ring, kick: None, call: None, enabled: false, event_idx: false, broken: false })
    }

    /// Back to the state after [`RequestQueue::new`], but for the features, which are the device's.
    pub(crate) fn reset(&mut self) {
        self.ring.reset();
        self.ring.set_event_idx(self.event_idx);
        self.kick = None;
        self.call = None;
        self.enabled = false;
        self.broken = false;
    }

    /// Whether both sides say from which request on they want to be notified (`VIRTIO_F_EVENT_IDX`).
    pub(crate) fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
        self.ring.set_event_idx(enabled);
    }

    /// The descriptor that tells of requests, if the queue runs.
    pub(crate) fn notifier(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().filter(|_| self.runs()).map(AsFd::as_fd)
    }

    /// Whether requests are served: the queue is the server's, and the guest has not spoilt it.
    pub(crate) fn runs(&self) -> bool {
        self.enabled && self.ring.ready() && !self.broken
    }

    /// Serves some requests. A guest that breaks the rules loses the queue, nothing else.
    pub fn serve(&mut self, memory: &Memory, files: &Arc<Files>) -> Progress {
        self.serve_with(memory, files, None)
    }

    /// The same; what waits for the host's disk goes to threads of its own, if there are any, in the name of the queue with
    /// this index, and comes back by [`RequestQueue::finish`].
    pub(crate) fn serve_with(
        &mut self,
        memory: &Memory,
        files: &Arc<Files>,
        slow: Option<(&mut Slow, usize)>,
    ) -> Progress {
        self.serve_batch(memory, files, slow).unwrap_or_else(|error| {
            self.stop(&error);
            Progress::Idle
        })
    }

    fn stop(&mut self, error: &QueueError) {
        log::error!("a request queue is stopped: {error}");
        self.broken = true;
    }

    fn serve_batch(
        &mut self,
        memory: &Memory,
        files: &Arc<Files>,
        mut slow: Option<(&mut Slow, usize)>,
    ) -> Result<Progress, QueueError> {
        let guard = memory.memory();
        if !self.ring.is_valid(&*guard) {
            return Err(QueueError::Rings);
        }
        if self.event_idx {
            self.ring.disable_notification(&*guard)?;
        }
        for _ in 0..BATCH {
            // Not pop_descriptor_chain: it takes a ring that is out of bounds for an empty one.
            let Some(chain) = self.ring.iter(guard.clone())?.next() else {
                let more = self.event_idx && self.ring.enable_notification(&*guard)?;
                return Ok(if more { Progress::More } else { Progress::Idle });
            };
            let head = chain.head_index();
            let request = Request { chain, memory: guard.clone() };
            let request = match &mut slow {
                Some((slow, queue)) if request.is_slow() => slow.begin(*queue, request, files),
                _ => Some(request),
            };
            if let Some(request) = request {
                let len = request.carry_out(files)?;
                self.give_back(&guard, head, len)?;
            }
        }
        Ok(Progress::More)
    }

    /// Tells the guest of a request that was carried out elsewhere.
    pub(crate) fn finish(&mut self, memory: &Memory, head: u16, outcome: Result<u32, QueueError>) {
        if self.broken || !self.ring.ready() {
            return;
        }
        let guard = memory.memory();
        if let Err(error) = outcome.and_then(|len| self.give_back(&guard, head, len)) {
            self.stop(&error);
        }
    }

    fn give_back(
        &mut self,
        guard: &GuestMemoryLoadGuard<Regions>,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        self.ring.add_used(&**guard, head, len)?;
        if !self.event_idx || self.ring.needs_notification(&**guard)? {
            self.notify().map_err(QueueError::Notification)?;
        }
        Ok(())
    }

    fn notify(&self) -> io::Result<()> {
        let Some(call) = &self.call else { return Ok(()) };
        match (&mut &*call).write(&1u64.to_ne_bytes()) {
            // A counter at its limit is a notification that has not been seen yet.
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(()),
        }
    }
}
