//! The calls to `/dev/vhost-net`.

use super::{Host, Ring};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding as binding;
use vhost::{Error, Result, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemory, GuestMemoryMmap};

/// The requests, all that a thread that makes these calls is to be allowed.
pub(crate) fn requests() -> [u32; 12] {
    [
        binding::VHOST_SET_OWNER(),
        binding::VHOST_GET_FEATURES(),
        binding::VHOST_SET_FEATURES(),
        binding::VHOST_SET_MEM_TABLE(),
        binding::VHOST_SET_VRING_NUM(),
        binding::VHOST_SET_VRING_ADDR(),
        binding::VHOST_SET_VRING_BASE(),
        binding::VHOST_GET_VRING_BASE(),
        binding::VHOST_SET_VRING_KICK(),
        binding::VHOST_SET_VRING_CALL(),
        binding::VHOST_SET_VRING_ERR(),
        binding::VHOST_NET_SET_BACKEND(),
    ]
    .map(|request| request as u32)
}

/// An open `/dev/vhost-net`.
pub(super) struct Kernel(pub(super) File);

impl Host for Kernel {
    fn own(&self) -> Result<()> {
        self.on(&GuestMemoryMmap::new()).set_owner()
    }

    fn features(&self) -> Result<u64> {
        self.on(&GuestMemoryMmap::new()).get_features()
    }

    fn set_up(&self, features: u64, memory: &GuestMemoryMmap) -> Result<()> {
        let device = self.on(memory);
        device.set_features(features)?;
        let regions: Result<Vec<_>> =
            memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        device.set_mem_table(&regions?)
    }

    fn give(&self, index: usize, ring: &Ring<'_>, memory: &GuestMemoryMmap) -> Result<()> {
        let device = self.on(memory);
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.descriptors,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.available,
            log_addr: None,
        };
        device.set_vring_num(index, ring.size)?;
        device.set_vring_addr(index, &config)?;
        device.set_vring_base(index, ring.next_available)?;
        device.set_vring_call(index, ring.call)?;
        device.set_vring_err(index, ring.broken)?;
        device.set_vring_kick(index, ring.kick)
    }

    fn connect(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> Result<()> {
        let fd = tap.map_or(-1, |tap| tap.as_raw_fd());
        let file = binding::vhost_vring_file { index: index as u32, fd };
        // SAFETY: the request reads a value that lives for the call; both descriptors are open.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                binding::VHOST_NET_SET_BACKEND() as libc::Ioctl,
                &raw const file,
            )
        };
        if result < 0 { Err(Error::IoctlError(std::io::Error::last_os_error())) } else { Ok(()) }
    }

    fn take_back(&self, index: usize) -> Result<u16> {
        self.on(&GuestMemoryMmap::new()).get_vring_base(index).map(|base| base as u16)
    }
}

impl Kernel {
    fn on<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Device<'a> {
        Device { file: self.0.as_fd(), memory }
    }
}

/// The device, and the memory that it is told of.
struct Device<'a> {
    file: BorrowedFd<'a>,
    memory: &'a GuestMemoryMmap,
}

impl AsRawFd for Device<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl<'a> VhostKernBackend for Device<'a> {
    type AS = &'a GuestMemoryMmap;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The transport has checked it; what is checked here by default refuses a ring at the very end of memory.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}
