//! From the tap into the buffers that the driver has provided.

use super::NetError;
use super::feature;
use super::header::{ETHERNET_VLAN, HEADER, MAX_FRAME, NUM_BUFFERS};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Chain;
use crate::virtio::iovec::IoVecs;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

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
        Ok(self.queue.wants_interrupt(&self.memory)?)
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
            if spilled.is_empty() {
                break;
            }
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
        for chain in &self.waiting {
            if left == 0 {
                break;
            }
            left -= left.min(chain.writable_len());
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
        let mut left = len;
        let filled = self.waiting.drain(..usize::from(count)).map(|chain| {
            let filled = left.min(chain.writable_len());
            left -= filled;
            self.room -= chain.writable_len();
            (chain.head(), filled as u32)
        });
        Ok(self.queue.complete_together(&self.memory, filled)?)
    }
}
