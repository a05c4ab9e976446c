//! From the tap into the buffers that the driver has provided.

use super::NetError;
use super::feature;
use super::header::{ETHERNET_VLAN, HEADER, MAX_FRAME, NUM_BUFFERS};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::iovec::IoVecs;
use std::collections::VecDeque;
use std::fs::File;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

/// Most frames taken before the loop looks at other devices.
const MAX_FRAMES: usize = 64;

/// The receive queue.
pub(super) struct Receiver {
    pub(super) queue: ActiveQueue,
    memory: GuestMemoryMmap,
    tap: Arc<File>,
    /// A frame may lie in several buffers.
    merges: bool,
    /// The driver makes checksums itself, and is to see no word about them.
    plain: bool,
    /// Room, with a header, for the longest frame that the tap gives: a frame that is taken is lost without.
    enough: usize,
    /// Buffers that are taken from the ring and not yet filled, and their bytes.
    waiting: VecDeque<Chain>,
    room: usize,
    /// So many bytes are read straight into them, and what a frame has more into `spill`: most frames are short, and
    /// those that are not come in rows.
    expected: usize,
    spill: Vec<u8>,
    /// The driver notifies: the ring ran empty.
    listening: bool,
    /// Buffers given back since the driver was last asked whether it wants to hear of it.
    given: Wrapping<u16>,
}

impl Receiver {
    pub(super) fn new(
        queue: ActiveQueue,
        memory: &GuestMemoryMmap,
        tap: Arc<File>,
        mtu: u16,
        features: u64,
    ) -> Self {
        let whole = features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
        let frame = if whole { MAX_FRAME } else { ETHERNET_VLAN + usize::from(mtu) };
        Self {
            queue,
            memory: memory.clone(),
            tap,
            merges: features & feature::MRG_RXBUF != 0,
            plain: features & feature::GUEST_CSUM == 0,
            enough: HEADER + frame,
            waiting: VecDeque::new(),
            room: 0,
            expected: 0,
            // One that fills it is longer than any.
            spill: vec![0; HEADER + MAX_FRAME + 1],
            listening: true,
            given: Wrapping(0),
        }
    }

    /// Moves frames while there are frames and buffers, a bounded number; whether the driver wants to hear of them.
    pub(super) fn serve(&mut self) -> Result<bool, NetError> {
        let mut left = MAX_FRAMES;
        while left > 0 && self.has_room()? && self.receive()? {
            left -= 1;
        }
        if left == 0 {
            self.queue.notify_again();
        }
        self.wants_interrupt()
    }

    /// Puts back what is not filled.
    pub(super) fn into_queue(mut self) -> ActiveQueue {
        self.waiting.iter().for_each(|_| self.queue.undo_pop());
        self.queue
    }

    /// Whether the longest frame would fit. If not, the driver is to notify of new buffers.
    fn has_room(&mut self) -> Result<bool, NetError> {
        loop {
            while if self.merges { self.room < self.enough } else { self.waiting.is_empty() } {
                let Some(chain) = self.queue.pop(&self.memory)? else { break };
                let len = chain.writable_len();
                if len < HEADER {
                    return Err(NetError::SmallBuffer(len));
                }
                self.room += len;
                self.waiting.push_back(chain);
            }
            if !self.waiting.is_empty() && (!self.merges || self.room >= self.enough) {
                if std::mem::take(&mut self.listening) {
                    self.queue.disable_notification(&self.memory)?;
                }
                return Ok(true);
            }
            self.listening = true;
            if !self.queue.enable_notification(&self.memory)? {
                return Ok(false);
            }
        }
    }

    /// Moves one frame; `false` when there is none.
    fn receive(&mut self) -> Result<bool, NetError> {
        let (buffers, most) = if self.merges {
            (self.waiting.len(), self.room)
        } else {
            (1, self.waiting.front().map_or(0, Chain::writable_len))
        };
        let (mut straight, mut filled) = (0, 0);
        let mut pieces = IoVecs::default();
        for chain in self.waiting.iter().take(buffers) {
            let len = chain.writable_len();
            chain.writer(&self.memory).gather(len, &mut pieces)?;
            straight += len;
            filled += 1;
            if straight >= self.expected {
                break;
            }
        }
        pieces.push(&VolatileSlice::from(&mut self.spill[..]));
        // A tap that is gone, with its namespace, has no frame either.
        let Ok(len) = pieces.read_packet(self.tap.as_fd()) else { return Ok(false) };
        self.expected = len.max(self.expected / 2);
        if !(HEADER..=most).contains(&len) {
            return Ok(true);
        }
        let mut spilled = &self.spill[..len.saturating_sub(straight)];
        for chain in self.waiting.iter().skip(filled) {
            let (piece, rest) = spilled.split_at(spilled.len().min(chain.writable_len()));
            chain.writer(&self.memory).write(piece)?;
            spilled = rest;
        }
        self.give(len)?;
        Ok(true)
    }

    /// Gives the driver the buffers that a frame, with its header, of `len` bytes is in: all at once, as it looks for
    /// the others when it sees the first (§5.1.6.4).
    fn give(&mut self, len: usize) -> Result<(), NetError> {
        let (mut left, mut count) = (len, 0u16);
        let next = Wrapping(self.queue.queue.next_used());
        let size = self.queue.queue.size();
        while let Some(chain) = self.waiting.get(usize::from(count)).filter(|_| left > 0) {
            let filled = left.min(chain.writable_len());
            let at = (next + Wrapping(count)).0 % size;
            let element = u64::from(filled as u32) << 32 | u64::from(chain.head());
            let at = self.queue.queue.used_ring() + 4 + 8 * u64::from(at);
            self.memory.write_obj(element.to_le(), GuestAddress(at)).map_err(ChainError::from)?;
            left -= filled;
            count += 1;
        }
        let Some(first) = self.waiting.front() else { return Ok(()) };
        let mut writer = first.writer(&self.memory);
        if self.plain {
            writer.write(&[0])?;
            writer.skip(NUM_BUFFERS - 1)?;
        } else {
            writer.skip(NUM_BUFFERS)?;
        }
        writer.write(&count.to_le_bytes())?;
        for chain in self.waiting.drain(..usize::from(count)) {
            self.room -= chain.writable_len();
        }
        let next = next + Wrapping(count);
        self.queue.queue.set_next_used(next.0);
        let index = GuestAddress(self.queue.queue.used_ring() + 2);
        self.memory.store(next.0.to_le(), index, Ordering::Release).map_err(ChainError::from)?;
        self.given += count;
        Ok(())
    }

    /// See [`ActiveQueue::wants_interrupt`], which doesn't know of what is given at once (§2.7.10).
    fn wants_interrupt(&mut self) -> Result<bool, NetError> {
        let given = std::mem::take(&mut self.given);
        let queue = &self.queue.queue;
        if given.0 == 0 || !queue.event_idx_enabled() {
            return Ok(given.0 != 0);
        }
        fence(Ordering::SeqCst);
        let at = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(queue.size()));
        let event: u16 = self.memory.load(at, Ordering::Relaxed).map_err(ChainError::from)?;
        Ok(Wrapping(queue.next_used()) - Wrapping(u16::from_le(event)) - Wrapping(1) < given)
    }
}
