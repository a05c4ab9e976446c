//! virtio-blk on a raw image file or a block device (virtio 1.3 §5.2).
//!
//! A read-only disk is opened read-only: what the guest thinks of it does not matter.

mod request;
#[cfg(test)]
mod tests;
mod worker;

use crate::virtio::{
    ActivateError, Activation, F_EVENT_IDX, F_INDIRECT_DESC, RestoreError, VirtioDevice, Worker,
};
use request::{MAX_RANGES, SECTOR};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use worker::BlkWorker;

const NAME: &str = "blk";
const DEVICE_ID: u32 = 2;
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
/// Bytes of the serial number (§5.2.6, `VIRTIO_BLK_T_GET_ID`).
const ID_LEN: usize = 20;
/// Bytes of the configuration space up to `unused1` behind `write_zeroes_may_unmap` (§5.2.4).
const CONFIG_LEN: usize = 60;
/// Most sectors of one discarded or zeroed range: 1 GiB.
const MAX_RANGE_SECTORS: u32 = (1 << 30) / SECTOR as u32;

/// Why a file can't be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be opened.
    #[error("open it{}", if *.read_only { " read-only" } else { " for reading and writing" })]
    Open {
        /// How it was to be opened.
        read_only: bool,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
    /// Its size can't be found out.
    #[error("find out its size")]
    Size(#[source] io::Error),
    /// Neither a regular file nor a block device.
    #[error("it is neither a file nor a block device")]
    Kind,
    /// Empty, or not a multiple of a sector.
    #[error("its size, {0} bytes, is not a positive multiple of 512")]
    OddSize(u64),
    /// The serial number is too long.
    #[error("the serial number {0:?} is longer than 20 bytes")]
    Serial(String),
}

/// The front.
pub struct Disk {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
    serial: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskState {
    sectors: u64,
    read_only: bool,
    serial: String,
}

impl Disk {
    /// Opens a disk's file.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: &Path, read_only: bool, serial: &str) -> Result<Self, DiskError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|source| DiskError::Open { read_only, source })?;
        let kind = file.metadata().map_err(DiskError::Size)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind);
        }
        let size = file.seek(SeekFrom::End(0)).map_err(DiskError::Size)?;
        if size == 0 || size % SECTOR != 0 {
            return Err(DiskError::OddSize(size));
        }
        if serial.len() > ID_LEN {
            return Err(DiskError::Serial(serial.to_owned()));
        }
        let (file, sectors) = (Arc::new(file), size / SECTOR);
        Ok(Self { file, sectors, read_only, serial: serial.to_owned() })
    }

    fn id(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        id[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        id
    }

    /// The configuration space (§5.2.4); what has no feature bit reads as zero.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, self.sectors as u32);
        put(4, (self.sectors >> 32) as u32);
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
        Ok(Box::new(BlkWorker {
            requests,
            memory: activation.memory,
            interrupt: activation.interrupt,
            file: self.file.clone(),
            sectors: self.sectors,
            read_only: self.read_only,
            id: self.id(),
        }))
    }

    fn save(&self) -> serde_json::Value {
        super::save_state(&DiskState {
            sectors: self.sectors,
            read_only: self.read_only,
            serial: self.serial.clone(),
        })
    }

    /// The disk's contents are not part of the state; its shape has to be the same.
    fn restore(&mut self, state: &serde_json::Value) -> Result<(), RestoreError> {
        let state: DiskState = super::restore_state(NAME, state)?;
        if (state.sectors, state.read_only) != (self.sectors, self.read_only) {
            let reason = "its size or writability differs".to_owned();
            return Err(RestoreError { device: NAME, reason });
        }
        Ok(())
    }
}
