//! The data path of virtio-blk, straight between file and guest memory, by any number of threads at once.
//!
//! A thread takes a request, does it, gives it back and takes the next. Before it does what may wait for the host's
//! disk, it has another one look for more: see [`super::helpers`]. What the host has in memory is read without that.
//! Requests end in any order, as the standard has it (virtio 1.3 §5.2.6.2): a driver waits for what it wants done first.

use super::image::{Extent, Image};
use super::request::{Range, Request, Status};
use super::{BLKDISCARD, ID};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::iovec::IoVecs;
use crate::virtio::{ActiveQueue, Interrupt};
use protocol::control::PART_BLOCK;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::GuestMemoryMmap;

/// Most requests served before the loop looks whether the worker is to stop.
const MAX_REQUESTS: usize = 64;
/// Bytes of a request's header, before the data to be written.
const HEADER: usize = 16;

/// What the threads of a disk share while its driver is up.
pub(super) struct DataPath {
    /// Held for a moment, not while a request is served. None: it was given back.
    pub(super) queue: Mutex<Option<ActiveQueue>>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) image: Arc<Image>,
    pub(super) read_only: bool,
}

impl DataPath {
    /// Serves what the driver has asked for, until there is no more.
    pub(super) fn serve(&self) -> Result<(), ChainError> {
        if let Some(queue) = &*self.queue() {
            queue.drain_notification();
        }
        for _ in 0..MAX_REQUESTS {
            let Some(chain) = self.next()? else { return Ok(()) };
            let written = self.serve_one(&chain)?;
            if self.complete(&chain, written)? {
                self.interrupt.signal_used();
            }
        }
        if let Some(queue) = &*self.queue() {
            queue.notify_again();
        }
        Ok(())
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Option<ActiveQueue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request; none: there will be a notification of it.
    fn next(&self) -> Result<Option<Chain>, ChainError> {
        let mut queue = self.queue();
        let Some(queue) = &mut *queue else { return Ok(None) };
        queue.disable_notification(&self.memory)?;
        loop {
            let chain = queue.pop(&self.memory)?;
            if chain.is_some() || !queue.enable_notification(&self.memory)? {
                return Ok(chain);
            }
        }
    }

    /// Gives a request back; whether the driver wants to be told.
    fn complete(&self, chain: &Chain, written: u32) -> Result<bool, ChainError> {
        let mut queue = self.queue();
        let Some(queue) = &mut *queue else { return Ok(false) };
        queue.complete(&self.memory, chain.head(), written)?;
        queue.wants_interrupt(&self.memory)
    }

    /// This thread is away for some time: what more there is, or comes, is for others.
    fn let_others_go_on(&self) {
        if let Some(queue) = &mut *self.queue()
            // If the rings can't be used any more, whoever takes a request next finds out.
            && queue.enable_notification(&self.memory).unwrap_or_default()
        {
            queue.notify_again();
        }
    }

    /// Serves one request and writes its status; returns the bytes written for the driver, counted
    /// from the start of the writable part without gaps.
    fn serve_one(&self, chain: &Chain) -> Result<u32, ChainError> {
        let status_at = chain.writable_len().saturating_sub(1);
        let result = Request::decode(chain, &self.memory, self.image.sectors())?
            .and_then(|request| self.execute(&request, chain));
        let (status, filled) = match result {
            Ok(filled) => (Status::Ok, filled),
            Err(status) => (status, 0),
        };
        let mut writer = chain.writer(&self.memory);
        writer.skip(status_at)?;
        writer.write(&[status as u8])?;
        Ok(if filled == status_at { status_at as u32 + 1 } else { filled as u32 })
    }

    /// Does what is asked; returns how much of the writable part was filled.
    fn execute(&self, request: &Request, chain: &Chain) -> Result<usize, Status> {
        let changes = !matches!(request, Request::Read(_) | Request::GetId | Request::Flush);
        if changes && self.read_only {
            return Err(Status::IoError);
        }
        if changes || *request == Request::Flush {
            self.let_others_go_on();
        }
        match request {
            Request::Read(range) => self.read(*range, chain),
            Request::Write(range) => self.write(*range, chain).map(|()| 0),
            Request::Flush if self.read_only => Ok(0),
            Request::Flush => {
                self.image.writable()?.sync_data().map(|()| 0).map_err(|_| Status::IoError)
            }
            Request::GetId => {
                // A shorter buffer gets the beginning.
                let len = ID.len().min(chain.writable_len().saturating_sub(1));
                let mut writer = chain.writer(&self.memory);
                writer.write(&ID[..len]).map(|()| len).map_err(|_| Status::IoError)
            }
            Request::Discard(ranges) => {
                ranges.iter().try_for_each(|range| self.discard(*range)).map(|()| 0)
            }
            Request::WriteZeroes(ranges) => {
                ranges.iter().try_for_each(|range| self.zero(*range)).map(|()| 0)
            }
        }
    }

    fn read(&self, range: Range, chain: &Chain) -> Result<usize, Status> {
        static ZEROS: [u8; PART_BLOCK as usize] = [0; PART_BLOCK as usize];
        let mut writer = chain.writer(&self.memory);
        let waits = Cell::new(false);
        let before_waiting = || {
            if !waits.replace(true) {
                self.let_others_go_on();
            }
        };
        for extent in self.image.extents(range.offset, range.len) {
            match extent {
                Extent::File { file, offset, len } => {
                    let mut pieces = IoVecs::default();
                    writer.gather(len, &mut pieces).map_err(|_| Status::IoError)?;
                    pieces
                        .read_from(file.as_fd(), offset, before_waiting)
                        .map_err(|_| Status::IoError)?;
                }
                Extent::Zeros(len) => {
                    writer.write(&ZEROS[..len]).map_err(|_| Status::IoError)?;
                }
            }
        }
        Ok(range.len as usize)
    }

    fn write(&self, range: Range, chain: &Chain) -> Result<(), Status> {
        let mut pieces = IoVecs::default();
        let mut reader = chain.reader(&self.memory);
        reader
            .skip(HEADER)
            .and_then(|()| reader.gather(range.len as usize, &mut pieces))
            .map_err(|_| Status::IoError)?;
        let file = self.image.writable()?;
        pieces.write_to(file.as_fd(), range.offset).map_err(|_| Status::IoError)
    }

    /// A file gets holes. So does a device that can forget and then reads as zeros; one that forgets without that
    /// promise is asked in its own way.
    fn discard(&self, range: Range) -> Result<(), Status> {
        match self.allocate(libc::FALLOC_FL_PUNCH_HOLE, range) {
            Err(Status::Unsupported) => self.forget(range),
            done => done,
        }
    }

    fn zero(&self, range: Range) -> Result<(), Status> {
        let unmapped = if range.unmap {
            self.allocate(libc::FALLOC_FL_PUNCH_HOLE, range)
        } else {
            Err(Status::Unsupported)
        };
        match unmapped {
            // That it may be deallocated does not say that it has to be.
            Err(Status::Unsupported) => self.allocate(libc::FALLOC_FL_ZERO_RANGE, range),
            done => done,
        }
    }

    fn allocate(&self, mode: i32, range: Range) -> Result<(), Status> {
        if range.len == 0 {
            return Ok(());
        }
        let (Ok(offset), Ok(len)) = (i64::try_from(range.offset), i64::try_from(range.len)) else {
            return Err(Status::IoError);
        };
        let fd = self.image.writable()?.as_raw_fd();
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes no pointers; the descriptor is owned by `self.image`.
        outcome(unsafe { libc::fallocate(fd, mode, offset, len) })
    }

    /// Of a block device; a file is none (ENOTTY).
    fn forget(&self, range: Range) -> Result<(), Status> {
        let fd = self.image.writable()?.as_raw_fd();
        let bytes = [range.offset, range.len];
        // SAFETY: the kernel reads two numbers; the descriptor is owned by `self.image`.
        outcome(unsafe { libc::ioctl(fd, BLKDISCARD.into(), bytes.as_ptr()) })
    }
}

/// What a system call that gives ranges back came to.
fn outcome(result: i32) -> Result<(), Status> {
    if result == 0 {
        return Ok(());
    }
    Err(match io::Error::last_os_error().raw_os_error() {
        // It can't be done there: the driver falls back to writing.
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => Status::Unsupported,
        _ => Status::IoError,
    })
}
