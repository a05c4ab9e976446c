//! The receive queue of the guest's driver: buffers into which packets for the guest go.

use super::VsockError;
use super::packet::{HEADER, Header};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::iovec::{IoVecs, MAX_PIECES};
use crate::virtio::{ActiveQueue, Interrupt};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Most bytes taken from one stream in one turn, so that others get theirs.
const MAX_TURN: usize = 256 * 1024;

/// What came of an attempt to receive from a host's socket into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The driver has to provide buffers first; a notification will tell.
    Starved,
    /// So many bytes; `full` when there was no room for more.
    Data {
        /// All the room that was offered is used.
        full: bool,
    },
    /// The socket has nothing at the moment.
    Empty,
    /// The host writes no more.
    End,
    /// The socket is broken.
    Broken,
}

/// The queue, and whether its driver is to notify of new buffers.
pub struct RxQueue {
    queue: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    /// The driver notifies: the queue ran empty.
    listening: bool,
    filled: bool,
}

impl RxQueue {
    /// A queue of which nothing was used yet.
    pub fn new(queue: ActiveQueue, memory: GuestMemoryMmap, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { queue, memory, interrupt, listening: true, filled: false }
    }

    /// For the epoll set.
    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Ends its use.
    pub fn into_queue(self) -> ActiveQueue {
        self.queue
    }

    /// Sends a packet without data; `false`, and nothing sent, when the driver has provided no buffer.
    ///
    /// # Errors
    /// When the queue or a buffer in it is not usable.
    pub fn put(&mut self, header: &Header) -> Result<bool, VsockError> {
        let Some(chain) = self.pop_or_listen()? else { return Ok(false) };
        self.complete(&chain, header)?;
        Ok(true)
    }

    /// Whether the driver has provided a buffer; when not, a notification will tell.
    ///
    /// # Errors
    /// When the queue is not usable.
    pub fn has_buffer(&mut self) -> Result<bool, VsockError> {
        let found = self.pop_or_listen()?.is_some();
        if found {
            self.queue.undo_pop();
        }
        Ok(found)
    }

    /// Receives straight from `socket` into up to `packets` of the driver's buffers, at most `room`
    /// bytes, and puts before each piece the header that `header` makes for its length.
    ///
    /// # Errors
    /// When the queue or a buffer in it is not usable.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        room: usize,
        packets: usize,
        mut header: impl FnMut(usize) -> Header,
    ) -> Result<Received, VsockError> {
        let Some(first) = self.pop_or_listen()? else { return Ok(Received::Starved) };
        let room = room.min(MAX_TURN);
        let mut capacity = data_capacity(&first)?;
        let mut chains = vec![first];
        while capacity < room && chains.len() < packets {
            let Some(chain) = self.queue.pop(&self.memory)? else { break };
            capacity += data_capacity(&chain)?;
            chains.push(chain);
        }
        let offered = room.min(capacity);
        let result = self.receive_into(&chains, offered, socket);
        let (mut left, outcome) = match result {
            Ok(0) => (0, Received::End),
            Ok(n) => (n, Received::Data { full: n == offered }),
            Err(VsockError::Socket(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                (0, Received::Empty)
            }
            Err(VsockError::Socket(_)) => (0, Received::Broken),
            Err(e) => return Err(e),
        };
        let mut used = 0;
        for chain in &chains {
            if left == 0 {
                break;
            }
            let len = left.min(data_capacity(chain)?);
            self.complete(chain, &header(len))?;
            left -= len;
            used += 1;
        }
        for _ in used..chains.len() {
            self.queue.undo_pop();
        }
        Ok(outcome)
    }

    fn receive_into(
        &self,
        chains: &[Chain],
        offered: usize,
        socket: BorrowedFd<'_>,
    ) -> Result<usize, VsockError> {
        let mut pieces = IoVecs::default();
        let mut left = offered;
        for chain in chains {
            let len = left.min(data_capacity(chain)?);
            let mut writer = chain.writer(&self.memory);
            writer.skip(HEADER)?;
            writer.gather(len, &mut pieces)?;
            left -= len;
            // A piece more than the system call takes would only not be filled, so this can't go
            // wrong; a driver that cuts its buffers so small gets less at a time.
            if left == 0 || pieces.pieces() >= MAX_PIECES {
                break;
            }
        }
        pieces.receive(socket).map_err(VsockError::Socket)
    }

    fn complete(&mut self, chain: &Chain, header: &Header) -> Result<(), VsockError> {
        chain.writer(&self.memory).write(&header.to_bytes())?;
        let written = HEADER as u32 + header.len;
        self.queue.complete(&self.memory, chain.head(), written)?;
        self.filled = true;
        Ok(())
    }

    /// The next buffer. When there is none, asks the driver to notify; when there is one, not to.
    fn pop_or_listen(&mut self) -> Result<Option<Chain>, ChainError> {
        loop {
            if let Some(chain) = self.queue.pop(&self.memory)? {
                if self.listening {
                    self.queue.disable_notification(&self.memory)?;
                    self.listening = false;
                }
                return Ok(Some(chain));
            }
            self.listening = true;
            if !self.queue.enable_notification(&self.memory)? {
                return Ok(None);
            }
        }
    }

    /// Interrupts the driver if it wants that and there is a reason.
    ///
    /// # Errors
    /// When the queue is not usable.
    pub fn interrupt(&mut self) -> Result<(), VsockError> {
        if std::mem::take(&mut self.filled) && self.queue.wants_interrupt(&self.memory)? {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

/// Bytes of data that fit behind the header.
fn data_capacity(chain: &Chain) -> Result<usize, VsockError> {
    match chain.writable_len() {
        len if len > HEADER => Ok(len - HEADER),
        len => Err(VsockError::SmallBuffer(len)),
    }
}
