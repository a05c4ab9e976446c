//! A request of virtio-blk, decoded and checked before anything is done (virtio 1.3 §5.2.6).

use crate::virtio::chain::{Chain, ChainError};
use vm_memory::GuestMemoryMmap;

/// Bytes of a sector, the unit of all addresses.
pub const SECTOR: u64 = 512;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of one range of a discard or write-zeroes request.
pub const RANGE: usize = 16;
/// Most ranges in one such request.
pub const MAX_RANGES: usize = 32;
/// Most sectors of one discarded or zeroed range: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = (1 << 30) / SECTOR as u32;
/// Flag of a range: write-zeroes may deallocate.
const RANGE_UNMAP: u32 = 1;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// How a request ended: its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Refused or failed.
    IoError = 1,
    /// No such request.
    Unsupported = 2,
}

/// A run of sectors, within the disk's capacity; in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; may be 0.
    pub len: u64,
    /// Write-zeroes may deallocate it.
    pub unmap: bool,
}

/// What the driver wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read a range into the writable part, before the status.
    Read(Range),
    /// Write what follows the header to a range.
    Write(Range),
    /// Make all that was written durable.
    Flush,
    /// Return the serial number.
    GetId,
    /// Deallocate ranges; what they read as afterwards is not defined.
    Discard(Vec<Range>),
    /// Fill ranges with zeroes.
    WriteZeroes(Vec<Range>),
}

impl Request {
    /// Decodes `chain`, for a disk of `sectors` sectors. The inner error is the status to answer
    /// with.
    ///
    /// # Errors
    /// [`ChainError`] when there is no byte for a status: then the driver can't be answered.
    pub fn decode(
        chain: &Chain,
        memory: &GuestMemoryMmap,
        sectors: u64,
    ) -> Result<Result<Self, Status>, ChainError> {
        if chain.writable_len() == 0 {
            return Err(ChainError::TooShort { wanted: 1, present: 0 });
        }
        let mut reader = chain.reader(memory);
        let mut header = [0; HEADER];
        if reader.read(&mut header).is_err() {
            return Ok(Err(Status::IoError));
        }
        let kind = u32_at(&header, 0);
        let first = u64_at(&header, 8);
        let (out_len, in_len) = (reader.remaining() as u64, chain.writable_len() as u64 - 1);
        Ok(match kind {
            T_IN => whole(first, in_len, sectors).map(Self::Read),
            T_OUT => whole(first, out_len, sectors).map(Self::Write),
            T_FLUSH => Ok(Self::Flush),
            T_GET_ID => Ok(Self::GetId),
            T_DISCARD | T_WRITE_ZEROES => {
                let count = reader.remaining() / RANGE;
                if count == 0 || count > MAX_RANGES || !reader.remaining().is_multiple_of(RANGE) {
                    return Ok(Err(Status::IoError));
                }
                let mut raw = vec![0; count * RANGE];
                reader.read(&mut raw)?;
                let ranges: Result<Vec<Range>, Status> =
                    raw.chunks_exact(RANGE).map(|r| range(r, kind, sectors)).collect();
                let build = if kind == T_DISCARD { Self::Discard } else { Self::WriteZeroes };
                ranges.map(build)
            }
            _ => Err(Status::Unsupported),
        })
    }
}

/// A run of whole sectors within the disk.
fn whole(first: u64, len: u64, sectors: u64) -> Result<Range, Status> {
    let end = first.checked_add(len / SECTOR).ok_or(Status::IoError)?;
    if !len.is_multiple_of(SECTOR) || end > sectors {
        return Err(Status::IoError);
    }
    Ok(Range { offset: first * SECTOR, len, unmap: false })
}

/// One range of a discard or write-zeroes request (§5.2.6, `struct virtio_blk_discard_write_zeroes`).
fn range(raw: &[u8], kind: u32, sectors: u64) -> Result<Range, Status> {
    let (first, count, flags) = (u64_at(raw, 0), u32_at(raw, 8), u32_at(raw, 12));
    let unmap = flags & RANGE_UNMAP != 0;
    // Unknown flags, and the flag where it means nothing, are unsupported (§5.2.6.2).
    if flags & !RANGE_UNMAP != 0 || (kind == T_DISCARD && unmap) {
        return Err(Status::Unsupported);
    }
    if count > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let range = whole(first, u64::from(count) * SECTOR, sectors)?;
    Ok(Range { unmap: unmap || kind == T_DISCARD, ..range })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
