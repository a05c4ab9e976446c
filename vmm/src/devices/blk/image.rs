//! What the sectors of a disk lie in: one file, or several read-only ones, one behind the other.

use super::OddSize;
use super::request::{SECTOR, Status};
use protocol::control::{MAX_FDS, PART_BLOCK};
use std::fs::File;
use std::ops::Range;

/// A run of bytes of an image, for one system call or none.
#[derive(Debug)]
pub(super) enum Extent<'a> {
    /// So many bytes of a file.
    File { file: &'a File, offset: u64, len: usize },
    /// So many zeros, fewer than [`PART_BLOCK`], behind the end of a part.
    Zeros(usize),
}

/// The files of a disk, and which bytes of the disk are in which.
pub(super) struct Image {
    /// Not empty, in the order of the disk.
    parts: Vec<Part>,
    sectors: u64,
}

struct Part {
    file: File,
    /// Of the disk's bytes those that are in the file, from its beginning.
    bytes: Range<u64>,
}

impl Image {
    /// Files with the number of their first bytes that count. Each part begins at a multiple of [`PART_BLOCK`]; with
    /// one part alone the disk ends where it does.
    pub(super) fn new(files: Vec<(File, u64)>, read_only: bool) -> Result<Self, OddSize> {
        let (count, mut end, mut parts) = (files.len(), 0u64, Vec::with_capacity(files.len()));
        if count == 0 || count > MAX_FDS || (count > 1 && !read_only) {
            return Err(OddSize::Parts(count));
        }
        for (file, bytes) in files {
            let start = end;
            let odd = OddSize::Bytes(bytes);
            let stop = start.checked_add(bytes).filter(|_| bytes > 0).ok_or(odd)?;
            end = if count == 1 { Some(stop) } else { stop.checked_next_multiple_of(PART_BLOCK) }
                .filter(|end| i64::try_from(*end).is_ok() && end.is_multiple_of(SECTOR))
                .ok_or(odd)?;
            parts.push(Part { file, bytes: start..stop });
        }
        Ok(Self { parts, sectors: end / SECTOR })
    }

    /// How many sectors the disk has.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The file that may be written to, if the descriptor's rights say so as well.
    pub(super) fn writable(&self) -> Result<&File, Status> {
        match &self.parts[..] {
            [only] => Ok(&only.file),
            _ => Err(Status::IoError),
        }
    }

    /// Where `len` bytes of the disk from `offset` on are, in their order; they are to be within its sectors.
    pub(super) fn extents(&self, offset: u64, len: u64) -> impl Iterator<Item = Extent<'_>> {
        let end = offset + len;
        let first = self.parts.partition_point(|part| part.bytes.start <= offset) - 1;
        let reaching = self.parts[first..].iter().take_while(move |part| part.bytes.start < end);
        let next = self.parts[first..].iter().skip(1).map(|part| part.bytes.start);
        reaching.zip(next.chain([self.sectors * SECTOR])).flat_map(move |(part, next)| {
            let Range { start, end: stop } = part.bytes;
            let within = |range: Range<u64>| range.start.max(offset)..range.end.min(end);
            let (data, zeros) = (within(start..stop), within(stop..next));
            let data = (!data.is_empty()).then(|| Extent::File {
                file: &part.file,
                offset: data.start - start,
                len: (data.end - data.start) as usize,
            });
            let zeros =
                (!zeros.is_empty()).then(|| Extent::Zeros((zeros.end - zeros.start) as usize));
            data.into_iter().chain(zeros)
        })
    }
}
