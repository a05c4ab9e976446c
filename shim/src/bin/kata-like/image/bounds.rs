//! How much an image may make us read and write. A kilobyte of it can stand for a gigabyte.

use anyhow::{Result, ensure};
use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a file, however small, takes of a disk, bytes: a block.
const FILE: u64 = 4096;

/// Most bytes of the headers before one entry of a tar file: its long name, attributes, the map of its holes. Go's
/// tar, by which images are made, takes as much for each of them.
const MAX_HEADERS: u64 = 1 << 20;

/// Most bytes of all files together, holes included: they are read as zeroes.
const MAX_LOGICAL: u64 = 1 << 40;

/// What is left of what an image may take of a disk.
pub(crate) struct Allowance {
    bytes: u64,
    left: Cell<u64>,
    files: u64,
    files_left: Cell<u64>,
    logical: Cell<u64>,
    stop: Arc<AtomicBool>,
}

/// Why no more of an image is unpacked.
#[derive(Debug, thiserror::Error)]
enum Spent {
    /// It has more in it than it may take.
    #[error("the image unpacks to more than {} MiB; see --max-image-mib", .0 >> 20)]
    Bytes(u64),
    /// It would leave the disk no inodes.
    #[error("the image has more than {0} files, nine tenths of what its disk can take")]
    Files(u64),
    /// It was told to stop.
    #[error("unpacking was interrupted")]
    Stopped,
}

impl Allowance {
    /// So many bytes, and any number of files.
    pub(crate) fn new(bytes: u64) -> Self {
        let (files, stop) = (u64::MAX, Arc::default());
        let (left, files_left) = (Cell::new(bytes), Cell::new(files));
        Self { bytes, left, files, files_left, logical: Cell::new(MAX_LOGICAL), stop }
    }

    /// The same with so many files and directories at most.
    pub(crate) fn with_files(self, files: u64) -> Self {
        Self { files, files_left: Cell::new(files), ..self }
    }

    /// The same until this is set.
    pub(crate) fn until(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Takes so many bytes of it.
    fn take(&self, bytes: u64) -> Result<(), Spent> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Spent::Stopped);
        }
        let left = self.left.get().checked_sub(bytes).ok_or(Spent::Bytes(self.bytes))?;
        self.left.set(left);
        Ok(())
    }

    /// Takes what a file or directory that is made costs, whatever is in it.
    pub(super) fn take_file(&self) -> Result<()> {
        self.take(FILE)?;
        let left = self.files_left.get().checked_sub(1).ok_or(Spent::Files(self.files))?;
        self.files_left.set(left);
        Ok(())
    }

    /// Notes a file that is so long, with its holes.
    pub(super) fn note_length(&self, bytes: u64) -> Result<()> {
        let left = self.logical.get().checked_sub(bytes);
        ensure!(left.is_some(), "files of more than {} GiB, holes included", MAX_LOGICAL >> 30);
        self.logical.set(left.unwrap_or_default());
        Ok(())
    }

    /// A reader of which every byte takes one.
    pub(crate) fn of<R: Read>(&self, inner: R) -> impl Read {
        Counted { inner, allowance: self }
    }
}

struct Counted<'a, R> {
    inner: R,
    allowance: &'a Allowance,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.allowance.take(read as u64).map_err(io::Error::other)?;
        Ok(read)
    }
}

/// Limits what is read on the way to the next entry of a tar file, where the library has everything in memory.
#[derive(Default)]
pub(super) struct HeaderLimit(Cell<Option<u64>>);

impl HeaderLimit {
    /// The reader that a tar file is to be read from.
    pub(super) fn reader<R>(&self, inner: R) -> impl Read + Seek
    where
        R: Read + Seek,
    {
        Limited { inner, limit: self }
    }

    /// The same for one that can't be moved.
    pub(super) fn stream<R: Read>(&self, inner: R) -> impl Read {
        Limited { inner, limit: self }
    }

    /// The entries, each of which has to be read to its end before the next.
    pub(super) fn entries<I: Iterator>(&self, entries: I) -> impl FusedIterator<Item = I::Item> {
        let mut entries = entries;
        std::iter::from_fn(move || {
            self.0.set(Some(MAX_HEADERS));
            let entry = entries.next();
            self.0.set(None);
            entry
        })
        .fuse()
    }
}

struct Limited<'a, R> {
    inner: R,
    limit: &'a HeaderLimit,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(left) = self.limit.0.get() {
            let left = left.checked_sub(read as u64).ok_or_else(|| {
                io::Error::other(format!("an entry's headers are longer than {MAX_HEADERS} bytes"))
            })?;
            self.limit.0.set(Some(left));
        }
        Ok(read)
    }
}

impl<R: Seek> Seek for Limited<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
