//! From the driver's chains to the tap.

use super::NetError;
use super::header::{self, HEADER};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::iovec::IoVecs;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// Most frames sent before the loop looks at other devices.
const MAX_FRAMES: usize = 64;

/// The transmit queue.
pub(super) struct Sender {
    pub(super) queue: ActiveQueue,
    memory: GuestMemoryMmap,
    tap: Arc<File>,
    features: u64,
}

impl Sender {
    pub(super) fn new(
        queue: ActiveQueue,
        memory: &GuestMemoryMmap,
        tap: Arc<File>,
        features: u64,
    ) -> Self {
        Self { queue, memory: memory.clone(), tap, features }
    }

    /// Sends what is waiting, a bounded number of frames; whether the driver wants to hear that they are sent.
    pub(super) fn serve(&mut self) -> Result<bool, NetError> {
        self.queue.disable_notification(&self.memory)?;
        let mut left = MAX_FRAMES;
        while left > 0 {
            let Some(chain) = self.queue.pop(&self.memory)? else {
                if self.queue.enable_notification(&self.memory)? {
                    continue;
                }
                break;
            };
            self.send(&chain)?;
            self.queue.complete(&self.memory, chain.head(), 0)?;
            left -= 1;
        }
        if left == 0 {
            self.queue.notify_again();
        }
        Ok(self.queue.wants_interrupt(&self.memory)?)
    }

    /// Sends one frame, or drops it, as any network may: when its header is not sound or the tap does not take it.
    fn send(&self, chain: &Chain) -> Result<(), ChainError> {
        let mut frame = chain.reader(&self.memory);
        let mut header = [0; HEADER];
        if frame.remaining() < HEADER {
            return Ok(());
        }
        // Its copy is sent, as the driver can change its own at any time.
        frame.read(&mut header)?;
        let len = frame.remaining();
        if !header::is_sound(&header, len, self.features) {
            return Ok(());
        }
        let mut pieces = IoVecs::default();
        pieces.push(&VolatileSlice::from(&mut header[..]));
        frame.gather(len, &mut pieces)?;
        let _ = pieces.write_packet(self.tap.as_fd());
        Ok(())
    }
}
