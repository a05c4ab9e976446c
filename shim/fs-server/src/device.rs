//! The vhost-user side of the device: the VMM says where guest memory and queues are.
//!
//! <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html> names the messages.

use crate::file_system::Files;
use crate::memory::{Memory, wish_huge_pages};
use crate::queue::{Progress, RequestQueue};
use crate::slow::{Done, Slow};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::QueueT;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap,
};

/// The high-priority queue and one request queue (virtio 1.3, 5.11.2).
pub(crate) const QUEUES: usize = 2;

/// Largest queue, as large as what the kernel's driver asks for.
const MAX_QUEUE_SIZE: u16 = 1024;

/// Where a part of guest memory is in the VMM's address space, which ring addresses refer to.
#[derive(Debug)]
struct Mapping {
    vmm: u64,
    guest: u64,
    size: u64,
}

/// A virtio-fs device.
pub(crate) struct Device {
    files: Arc<Files>,
    /// Who carries out what takes long; without, it is done like the rest.
    slow: Option<Slow>,
    memory: Memory,
    mappings: Vec<Mapping>,
    queues: Vec<RequestQueue>,
    features: u64,
}

impl Device {
    /// A device that waits for the VMM to set it up.
    pub(crate) fn new(
        files: Files,
        slow: Option<Slow>,
    ) -> std::result::Result<Self, virtio_queue::Error> {
        let queues: std::result::Result<_, _> =
            (0..QUEUES).map(|_| RequestQueue::new(MAX_QUEUE_SIZE)).collect();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let files = Arc::new(files);
        Ok(Self { files, slow, memory, mappings: Vec::new(), queues: queues?, features: 0 })
    }

    /// The queues, to wait for their notifications.
    pub(crate) fn queues(&self) -> &[RequestQueue] {
        &self.queues
    }

    /// Takes the notification of a queue and serves its requests, some of them. None if it does not run: it may
    /// have been handed back since it was seen to be notified.
    pub(crate) fn serve(&mut self, index: usize, notified: bool) -> io::Result<Progress> {
        let queue = self.queues.get_mut(index).filter(|queue| queue.runs());
        let Some(queue) = queue else { return Ok(Progress::Idle) };
        if notified && let Some(kick) = &queue.kick {
            match (&mut &*kick).read(&mut [0; 8]) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
        }
        let slow = self.slow.as_mut().map(|slow| (slow, index));
        Ok(queue.serve_with(&self.memory, &self.files, slow))
    }

    /// What is readable when a request that took long is done.
    pub(crate) fn slow_notifier(&self) -> Option<BorrowedFd<'_>> {
        self.slow.as_ref().map(Slow::notifier)
    }

    /// Tells the guest of requests that took long.
    pub(crate) fn finish(&mut self) {
        let done = self.slow.as_mut().map(Slow::done);
        self.give_back(done.unwrap_or_default());
    }

    /// Waits for them all: a queue is given back with nothing under way.
    fn settle(&mut self) {
        let done = self.slow.as_mut().map(Slow::settle);
        self.give_back(done.unwrap_or_default());
    }

    fn give_back(&mut self, done: Vec<Done>) {
        for Done { queue, head, outcome } in done {
            if let Some(queue) = self.queues.get_mut(queue) {
                queue.finish(&self.memory, head, outcome);
            }
        }
    }

    fn queue(&mut self, index: impl TryInto<usize>) -> Result<&mut RequestQueue> {
        let index = index.try_into().map_err(|_| Error::InvalidParam)?;
        self.queues.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, vmm: u64) -> Result<u64> {
        let place = self.mappings.iter().find_map(|mapping| {
            let offset = vmm.checked_sub(mapping.vmm).filter(|&offset| offset < mapping.size)?;
            mapping.guest.checked_add(offset)
        });
        place.ok_or(Error::InvalidParam)
    }
}

fn offered_features() -> u64 {
    1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

fn offered_protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE
}

fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("the feature was not offered"))
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.settle();
        for queue in &mut self.queues {
            queue.set_event_idx(false);
            queue.reset();
        }
        self.features = 0;
        self.files.destroy();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !offered_features() != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let enable = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
            // Without the protocol's features there is no SET_VRING_ENABLE.
            queue.enabled |= enable;
        }
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut mappings = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            check_length(region, &file)?;
            let start = GuestAddress(region.guest_phys_addr);
            let region_map = region.mmap_region(file)?;
            wish_huge_pages(&region_map);
            mapped.push(GuestRegionMmap::new(region_map, start).ok_or(Error::InvalidParam)?);
            mappings.push(Mapping {
                vmm: region.user_addr,
                guest: region.guest_phys_addr,
                size: region.memory_size,
            });
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        self.memory.lock().map_err(|_| Error::BackendInternalError)?.replace(memory);
        self.mappings = mappings;
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let size = u16::try_from(size).map_err(|_| Error::InvalidParam)?;
        let ring = &mut self.queue(index)?.ring;
        ring.set_size(size);
        if ring.size() == size { Ok(()) } else { Err(Error::InvalidParam) }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptors = GuestAddress(self.guest_address(descriptors)?);
        let used = GuestAddress(self.guest_address(used)?);
        let available = GuestAddress(self.guest_address(available)?);
        let memory = self.memory.memory();
        let ring = &mut self.queue(index)?.ring;
        ring.try_set_desc_table_address(descriptors).map_err(|_| Error::InvalidParam)?;
        ring.try_set_avail_ring_address(available).map_err(|_| Error::InvalidParam)?;
        ring.try_set_used_ring_address(used).map_err(|_| Error::InvalidParam)?;
        // SET_VRING_BASE tells of the available ring alone; a queue that is resumed goes on where the
        // used ring ends.
        let next = ring.used_idx(&*memory, std::sync::atomic::Ordering::Relaxed);
        ring.set_next_used(next.map_err(|_| Error::InvalidParam)?.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.queue(index)?.ring.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.settle();
        let queue = self.queue(index)?;
        let next = queue.ring.next_avail();
        let enabled = queue.enabled;
        queue.reset();
        queue.enabled = enabled;
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(never_blocking).transpose()?;
        let queue = self.queue(index)?;
        // A queue starts when it is given its notifier.
        queue.ring.set_ready(file.is_some());
        queue.kick = file;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(never_blocking).transpose()?;
        self.queue(index)?.call = file;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.queue(index).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(offered_protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !offered_protocol_features().bits() != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        not_offered()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        not_offered()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        not_offered()
    }
}

/// A map may reach beyond the end of its file; who looks there is killed.
fn check_length(region: &VhostUserMemoryRegion, file: &File) -> Result<()> {
    let has = file.metadata().map_err(|_| Error::InvalidParam)?.len();
    let end = region.mmap_offset.checked_add(region.memory_size).ok_or(Error::InvalidParam)?;
    if end <= has { Ok(()) } else { Err(Error::InvalidParam) }
}

/// A notifier that can't hold up the only thread: what was seen to be notified another queue may have taken since.
fn never_blocking(file: File) -> Result<File> {
    let flags = fcntl_getfl(&file).map_err(|_| Error::InvalidParam)?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|_| Error::InvalidParam)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Write;

    #[test]
    fn notifiers_never_block() {
        let event = || File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let shared = event();
        let files = crate::open(crate::own_descriptors().unwrap(), crate::Roots::Guests);
        let mut device = Device::new(files.unwrap(), None).unwrap();
        for index in 0..2 {
            let kick = shared.try_clone().unwrap();
            device.set_vring_kick(index, Some(kick)).unwrap();
            device.set_vring_call(index, Some(event())).unwrap();
            device.set_vring_enable(index.into(), true).unwrap();
        }
        (&shared).write_all(&1u64.to_ne_bytes()).unwrap();
        // Both were seen to be notified; the second finds that the first has taken it.
        assert!(device.serve(0, true).is_ok() && device.serve(1, true).is_ok());
        let call = device.queues()[0].call.as_ref().unwrap();
        (&*call).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert_eq!((&*call).write(&[1; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn memory_is_all_in_its_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let is_there = |mmap_offset, memory_size| {
            let region = VhostUserMemoryRegion {
                memory_size,
                mmap_offset,
                ..VhostUserMemoryRegion::default()
            };
            check_length(&region, &file).is_ok()
        };
        assert!(is_there(0, 0x3000) && is_there(0x1000, 0x2000));
        assert!(!is_there(0, 0x3001) && !is_there(0x2000, 0x2000) && !is_there(u64::MAX, 2));
    }
}
