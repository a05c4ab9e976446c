//! Descriptor chains (virtio 1.3 §2.7.5), walked once under the eyes of a driver that may be hostile.
//!
//! The walk reads each descriptor exactly once, copies it, and checks it; afterwards nothing in the
//! descriptor table is looked at again, so a driver that rewrites it changes nothing. The buffers'
//! *contents* stay the driver's to change, so [`Chain::reader`] hands each byte out once.

use super::iovec::IoVecs;
use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const DESCRIPTOR_SIZE: u64 = 16;

/// Most bytes of one chain's readable or writable part: what Linux reports as free in one chain (32
/// blocks of 4 MiB), and far above what it sends to any other device.
pub const MAX_BYTES: u64 = 128 << 20;

/// How ring or chain break the rules.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The available or used ring is inconsistent.
    #[error("virtqueue ring: {0}")]
    Ring(virtio_queue::Error),
    /// A descriptor index lies outside the table.
    #[error("descriptor {index} lies outside the table of {size}")]
    BadIndex {
        /// The index.
        index: u16,
        /// The table's size.
        size: u16,
    },
    /// More descriptors than the table holds: a loop.
    #[error("descriptor chain is a loop, or longer than its queue")]
    TooLong,
    /// More than [`MAX_BYTES`].
    #[error("descriptor chain has more than {MAX_BYTES} bytes")]
    TooManyBytes,
    /// A buffer of no bytes.
    #[error("descriptor of zero length")]
    ZeroLength,
    /// A buffer that is not wholly in guest memory.
    #[error("buffer {address:#x}+{len:#x} lies outside guest memory")]
    OutsideMemory {
        /// Where it begins.
        address: u64,
        /// Its length, bytes.
        len: u32,
    },
    /// A readable buffer after a writable one (§2.7.4.2).
    #[error("device-readable descriptor after a device-writable one")]
    ReadableAfterWritable,
    /// An indirect table inside an indirect table, of a bad length, or with a next descriptor (§2.7.5.3).
    #[error("bad indirect descriptor table")]
    BadIndirect,
    /// The readable part ended before the device had what it needs.
    #[error("descriptor chain is too short: {wanted} bytes wanted, {present} there")]
    TooShort {
        /// Bytes the device needs.
        wanted: usize,
        /// Bytes the chain has.
        present: usize,
    },
    /// Guest memory could not be accessed although it was checked.
    #[error("guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// A buffer in guest memory: checked to lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Bytes, not 0.
    pub len: u32,
}

/// A chain that was walked and checked.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Buffers,
    writable: Buffers,
}

/// Most chains have one or two, and are taken by the hundred thousand a second.
type Buffers = SmallVec<[Buffer; 2]>;

/// A descriptor, copied out of guest memory.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Reads descriptor `index` of a table in one access.
    fn read(
        memory: &GuestMemoryMmap,
        table: u64,
        size: u16,
        index: u16,
    ) -> Result<Self, ChainError> {
        if index >= size {
            return Err(ChainError::BadIndex { index, size });
        }
        let mut raw = [0u8; DESCRIPTOR_SIZE as usize];
        let address = table
            .checked_add(u64::from(index) * DESCRIPTOR_SIZE)
            .ok_or(ChainError::OutsideMemory { address: table, len: DESCRIPTOR_SIZE as u32 })?;
        read(memory, GuestAddress(address), &mut raw)?;
        let (a, rest) = raw.split_at(8);
        Ok(Self {
            address: u64::from_le_bytes(a.try_into().unwrap_or_default()),
            len: u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]),
            flags: u16::from_le_bytes([rest[4], rest[5]]),
            next: u16::from_le_bytes([rest[6], rest[7]]),
        })
    }
}

/// Copies bytes out of guest memory. Nearly always they lie in one region, where they are found much faster.
fn read(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    data: &mut [u8],
) -> Result<(), ChainError> {
    match memory.get_slice(address, data.len()) {
        Ok(slice) => {
            slice.copy_to(data);
            Ok(())
        }
        Err(_) => Ok(memory.read_slice(data, address)?),
    }
}

/// Copies bytes into guest memory, as [`read`] does out of it.
///
/// # Errors
/// When they don't all lie in guest memory.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    data: &[u8],
) -> Result<(), ChainError> {
    match memory.get_slice(address, data.len()) {
        Ok(slice) => {
            slice.copy_from(data);
            Ok(())
        }
        Err(_) => Ok(memory.write_slice(data, address)?),
    }
}

impl Chain {
    /// Walks the chain that begins at descriptor `head` of a table of `size` descriptors.
    ///
    /// # Errors
    /// [`ChainError`], never a partial chain.
    pub fn walk(
        memory: &GuestMemoryMmap,
        table: u64,
        size: u16,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self { head, ..Self::default() };
        let first = Descriptor::read(memory, table, size, head)?;
        if first.flags & F_INDIRECT == 0 {
            chain.follow(memory, table, size, first)?;
            return Ok(chain);
        }
        // The driver must not chain an indirect descriptor. (The standard allows ordinary
        // descriptors before one; no driver does that, so it is refused: one form less to get wrong.)
        let entries = u64::from(first.len) / DESCRIPTOR_SIZE;
        let whole = u64::from(first.len) == entries * DESCRIPTOR_SIZE;
        if first.flags & F_NEXT != 0 || !whole || entries == 0 || entries > u64::from(size) {
            return Err(ChainError::BadIndirect);
        }
        let entries = entries as u16;
        let second = Descriptor::read(memory, first.address, entries, 0)?;
        chain.follow(memory, first.address, entries, second)?;
        Ok(chain)
    }

    fn follow(
        &mut self,
        memory: &GuestMemoryMmap,
        table: u64,
        size: u16,
        first: Descriptor,
    ) -> Result<(), ChainError> {
        let (mut descriptor, mut read, mut written) = (first, 0u64, 0u64);
        for _ in 0..size {
            if descriptor.flags & F_INDIRECT != 0 {
                return Err(ChainError::BadIndirect);
            }
            let total = if descriptor.flags & F_WRITE == 0 { &mut read } else { &mut written };
            *total += u64::from(descriptor.len);
            if *total > MAX_BYTES {
                return Err(ChainError::TooManyBytes);
            }
            self.push(memory, &descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            descriptor = Descriptor::read(memory, table, size, descriptor.next)?;
        }
        Err(ChainError::TooLong)
    }

    fn push(&mut self, memory: &GuestMemoryMmap, d: &Descriptor) -> Result<(), ChainError> {
        let buffer = Buffer { address: GuestAddress(d.address), len: d.len };
        if d.len == 0 {
            return Err(ChainError::ZeroLength);
        }
        let (address, len) = (buffer.address, buffer.len as usize);
        if memory.get_slice(address, len).is_err() && !memory.check_range(address, len) {
            return Err(ChainError::OutsideMemory { address: d.address, len: d.len });
        }
        if d.flags & F_WRITE != 0 {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(ChainError::ReadableAfterWritable);
        }
        Ok(())
    }

    /// Index of the first descriptor: names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes of the device-readable part; at most [`MAX_BYTES`].
    pub fn readable_len(&self) -> usize {
        self.readable.iter().map(|b| b.len as usize).sum()
    }

    /// Bytes of the device-writable part; at most [`MAX_BYTES`].
    pub fn writable_len(&self) -> usize {
        self.writable.iter().map(|b| b.len as usize).sum()
    }

    /// The device-readable part, to be consumed from the front.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Cursor<'a> {
        Cursor { memory, buffers: &self.readable, offset: 0 }
    }

    /// The device-writable part, to be filled from the front.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Cursor<'a> {
        Cursor { memory, buffers: &self.writable, offset: 0 }
    }
}

/// A place in one part of a chain; moves forward only, so no byte is read or written twice.
#[derive(Clone)]
pub struct Cursor<'a> {
    memory: &'a GuestMemoryMmap,
    buffers: &'a [Buffer],
    offset: u32,
}

impl<'a> Cursor<'a> {
    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.buffers.iter().map(|b| b.len as usize).sum::<usize>() - self.offset as usize
    }

    /// The next piece of at most `len` bytes that lies in one buffer; `None` at the end.
    fn piece(&mut self, len: usize) -> Option<Buffer> {
        let (first, rest) = self.buffers.split_first()?;
        let left = first.len - self.offset;
        let take = left.min(u32::try_from(len).unwrap_or(u32::MAX));
        // Checked in the walk: address + len does not wrap.
        let address = GuestAddress(first.address.0 + u64::from(self.offset));
        if take == left {
            self.buffers = rest;
            self.offset = 0;
        } else {
            self.offset += take;
        }
        Some(Buffer { address, len: take })
    }

    fn need(&self, wanted: usize) -> Result<(), ChainError> {
        let present = self.remaining();
        if wanted > present { Err(ChainError::TooShort { wanted, present }) } else { Ok(()) }
    }

    /// Copies the next `data.len()` bytes out of guest memory.
    ///
    /// # Errors
    /// [`ChainError::TooShort`], with nothing consumed, when fewer are left.
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), ChainError> {
        self.need(data.len())?;
        let mut done = 0;
        while done < data.len() {
            let Some(piece) = self.piece(data.len() - done) else { break };
            let end = done + piece.len as usize;
            read(self.memory, piece.address, &mut data[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Copies `data` into guest memory.
    ///
    /// # Errors
    /// [`ChainError::TooShort`], with nothing written, when there is less room.
    pub fn write(&mut self, data: &[u8]) -> Result<(), ChainError> {
        self.need(data.len())?;
        let mut done = 0;
        while done < data.len() {
            let Some(piece) = self.piece(data.len() - done) else { break };
            let end = done + piece.len as usize;
            write(self.memory, piece.address, &data[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Skips `len` bytes.
    ///
    /// # Errors
    /// [`ChainError::TooShort`], with nothing skipped, when fewer are left.
    pub fn skip(&mut self, len: usize) -> Result<(), ChainError> {
        self.need(len)?;
        let mut left = len;
        while left > 0 {
            let Some(piece) = self.piece(left) else { break };
            left -= piece.len as usize;
        }
        Ok(())
    }

    /// Adds the next `len` bytes, without touching them, to a list for a vectored system call.
    ///
    /// # Errors
    /// [`ChainError::TooShort`], with nothing consumed, when fewer are left.
    pub fn gather(&mut self, len: usize, into: &mut IoVecs<'a>) -> Result<(), ChainError> {
        self.need(len)?;
        let mut left = len;
        while left > 0 {
            let Some(piece) = self.piece(left) else { break };
            let len = piece.len as usize;
            match self.memory.get_slice(piece.address, len) {
                Ok(slice) => into.push(&slice),
                Err(_) => self.memory.get_slices(piece.address, len).try_for_each(|slice| {
                    into.push(&slice?);
                    Ok::<_, ChainError>(())
                })?,
            }
            left -= piece.len as usize;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
