//! virtio-blk on a raw image file or a block device, or on several read-only files, one behind the other
//! (virtio 1.3 §5.2).
//!
//! A read-only disk is descriptors open for reading: what the guest thinks of it does not matter.

mod data_path;
mod helpers;
mod image;
mod request;
#[cfg(test)]
mod slow_tests;
#[cfg(test)]
mod tests;
mod worker;

/// `BLKDISCARD` of linux/fs.h.
pub(crate) const BLKDISCARD: u32 = 0x1277;

use crate::virtio::starter::Threads;
use crate::virtio::{
    ActivateError, Activation, F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice, Worker,
};
use data_path::DataPath;
use helpers::Helpers;
use image::Image;
use protocol::control::MAX_FDS;
use request::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use std::fs::File;
use std::io;
use std::sync::Arc;
use worker::BlkWorker;

const NAME: &str = "blk";
const DEVICE_ID: u32 = 2;
/// The queue of requests (§5.2.2).
const QUEUE_SIZES: [u16; 1] = [256];

/// `VIRTIO_BLK_F_*` (§5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Descriptors of a request beside its data: header and status.
const OVERHEAD: u32 = 2;
/// The serial number of every disk (§5.2.6, `VIRTIO_BLK_T_GET_ID`).
const ID: [u8; 20] = *b"kata-like\0\0\0\0\0\0\0\0\0\0\0";
/// Bytes of the configuration space up to `unused1` behind `write_zeroes_may_unmap` (§5.2.4).
const CONFIG_LEN: usize = 60;

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its size.
    #[error(transparent)]
    Size(#[from] OddSize),
    /// No more descriptors, or the like.
    #[error("set up a disk")]
    Resources(#[from] io::Error),
}

/// A size that no disk has.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum OddSize {
    /// Of it all, or of a part.
    #[error("a disk's size, {0} bytes, is not a positive multiple of {SECTOR}, or is too large")]
    Bytes(u64),
    /// Of how many parts it is.
    #[error("a disk is one file, or up to {MAX_FDS} that are only read, not {0}")]
    Parts(usize),
}

/// The front.
pub struct Disk {
    image: Arc<Image>,
    read_only: bool,
    helpers: Arc<Helpers>,
}

impl Disk {
    /// A disk of so many bytes of a raw image file or a block device; or of several that are only read, see
    /// [`protocol::control::Command::AttachDisk`]. While a driver is up, it has more `threads` than its loop's.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(
        files: Vec<(File, u64)>,
        read_only: bool,
        threads: Threads,
    ) -> Result<Self, DiskError> {
        let image = Arc::new(Image::new(files, read_only)?);
        Ok(Self { image, read_only, helpers: Arc::new(Helpers::new(threads)?) })
    }

    /// The configuration space (§5.2.4); what has no feature bit reads as zero.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, self.image.sectors() as u32);
        put(4, (self.image.sectors() >> 32) as u32);
        // size_max (8) is not offered; seg_max:
        put(12, u32::from(QUEUE_SIZES[0]) - OVERHEAD);
        if !self.read_only {
            put(36, MAX_RANGE_SECTORS); // max_discard_sectors
            put(40, MAX_RANGES as u32); // max_discard_seg
            put(44, 1); // discard_sector_alignment
            put(48, MAX_RANGE_SECTORS); // max_write_zeroes_sectors
            put(52, MAX_RANGES as u32); // max_write_zeroes_seg
            put(56, 1); // write_zeroes_may_unmap
        }
        config
    }
}

impl VirtioDevice for Disk {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let writable = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
        let kind = if self.read_only { feature::RO } else { writable };
        kind | feature::SEG_MAX | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let requests = activation.take_queue(0)?;
        let path = DataPath {
            queue: Some(requests).into(),
            memory: activation.memory,
            interrupt: activation.interrupt,
            image: self.image.clone(),
            read_only: self.read_only,
        };
        Ok(Box::new(BlkWorker { path: Arc::new(path), helpers: self.helpers.clone() }))
    }
}
