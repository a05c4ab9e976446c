//! Guest memory: one memfd, mapped shared, below and above the device hole.
//!
//! One file, so that a file server (vhost-user) can map it and a snapshot can share it.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, mmap::MmapRegionBuilder,
};

/// Where memory stops below 4 GiB; devices, IO-APIC, local APICs and the TSS lie above.
pub const HOLE_START: u64 = 3 << 30;

/// Where memory goes on.
pub const HOLE_END: u64 = 4 << 30;

/// Size and alignment of a huge page, bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Zero, or more than an address can say.
    #[error("a guest memory of {0} bytes is impossible")]
    Size(u64),
    /// The file can't be made.
    #[error("no file of {0} MiB for the guest memory")]
    File(u64, #[source] io::Error),
    /// It can't be mapped.
    #[error("the guest memory can't be mapped")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// KVM does not take it.
    #[error("KVM refused the guest memory")]
    Register(#[source] kvm_ioctls::Error),
}

impl MemoryError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Size(_) => "configure between 32 MiB and what the host has",
            Self::File(..) | Self::Map(_) => {
                "configure less memory for the machine, or see `ulimit -v`, the cgroup's \
                 memory.max and /proc/sys/vm/overcommit_memory"
            }
            Self::Register(_) => "see `dmesg` of the host for KVM's own message",
        }
    }
}

/// A machine's memory.
pub struct GuestRam {
    memory: GuestMemoryMmap,
}

/// The parts of a memory of `size` bytes, as (guest address, length).
fn layout(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE_START {
        return vec![(0, size)];
    }
    vec![(0, HOLE_START), (HOLE_END, size - HOLE_START)]
}

impl GuestRam {
    /// Makes a memory of `size` bytes (rounded down to pages); nothing is touched yet.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        let size = size & !0xfff;
        if size == 0 || size > 1 << 46 {
            return Err(MemoryError::Size(size));
        }
        let file = sealed_file(size).map_err(|e| MemoryError::File(size >> 20, e))?;
        let file = Arc::new(file);
        let mut regions = Vec::new();
        let mut offset = 0;
        for (address, len) in layout(size) {
            let region = map(&file, offset, len)?;
            advise(&region);
            let region = GuestRegionMmap::new(region, GuestAddress(address))
                .ok_or(MemoryError::Size(size))?;
            regions.push(region);
            offset += len;
        }
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(e.into()))?;
        Ok(Self { memory })
    }

    /// The memory, for devices and loaders; clones share it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Populates a range with huge pages, as far as the host has them and whatever its policy for
    /// shared memory is: for what the guest touches anyway at its start. A fault of a guest costs
    /// far more than the 2 MiB are worth, above all under nested virtualisation.
    pub fn populate(&self, start: u64, len: u64) {
        let end = start.saturating_add(len).checked_next_multiple_of(HUGE_PAGE);
        let end = end.unwrap_or(u64::MAX);
        let start = start & !(HUGE_PAGE - 1);
        for region in self.memory.iter() {
            let (base, limit) = (region.start_addr().0, region.start_addr().0 + region.len());
            // Only whole huge pages: the end of a region may be shorter.
            let (from, to) = (start.max(base), end.min(limit & !(HUGE_PAGE - 1)));
            if from < to {
                let start = region.as_ptr().wrapping_add((from - base) as usize);
                collapse(start, (to - from) as usize);
            }
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }

    /// The parts, as (guest address, length).
    pub fn regions(&self) -> Vec<(u64, u64)> {
        self.memory.iter().map(|r| (r.start_addr().0, r.len())).collect()
    }

    /// Makes it the memory of `vm`.
    ///
    /// # Errors
    /// [`MemoryError::Register`].
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in self.memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping lives as long as the machine, which ends with the process; the
            // guest's writes to it are what `GuestMemoryMmap`'s volatile accesses expect.
            unsafe { vm.set_user_memory_region(slot) }.map_err(MemoryError::Register)?;
        }
        Ok(())
    }
}

/// A memfd of exactly `size` bytes that nobody can shrink under us: a file server that holds it
/// could otherwise kill the VMM with SIGBUS.
fn sealed_file(size: u64) -> io::Result<File> {
    let fd = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(size)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Maps `len` bytes of the file at an address that is a multiple of [`HUGE_PAGE`], as the guest
/// addresses are: otherwise neither the host nor KVM can use a huge page. The mapping stays until
/// the process ends.
fn map(file: &Arc<File>, offset: u64, len: u64) -> Result<MmapRegion, MemoryError> {
    let refused = |e: nix::Error| MemoryError::Map(e.into());
    let size = NonZeroUsize::new(len as usize).ok_or(MemoryError::Size(len))?;
    let reserved_len = size.saturating_add(HUGE_PAGE as usize);
    let (none, private) = (ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let reserved = unsafe { mmap_anonymous(None, reserved_len, none, private) }.map_err(refused)?;
    let start = (reserved.addr().get()).next_multiple_of(HUGE_PAGE as usize);
    let at = NonZeroUsize::new(start);
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    let fixed = MapFlags::from_bits_truncate(flags) | MapFlags::MAP_FIXED;
    let access = ProtFlags::from_bits_truncate(prot);
    // SAFETY: the range lies in the reservation just made, which nothing else uses.
    let mapped = unsafe { mmap(at, size, access, fixed, file, offset as i64) }.map_err(refused)?;
    let builder = MmapRegionBuilder::new(size.get())
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .with_mmap_prot(prot)
        .with_mmap_flags(flags);
    // SAFETY: the mapping has this size and is never unmapped.
    unsafe { builder.with_raw_mmap_pointer(mapped.as_ptr().cast()) }
        .build()
        .map_err(|e| MemoryError::Map(e.into()))
}

/// Huge pages where the host gives them to shared memory (`shmem_enabled`), and no guest memory
/// in core dumps. Both are wishes: failure changes nothing that the guest can see.
fn advise(region: &MmapRegion) {
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: the range is exactly the mapping, and neither advice changes its contents.
        let _ = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    }
}

/// Makes whole huge pages of a range of a mapping that is aligned to them, keeping its contents.
/// A host that can't do it (no room, a kernel before 6.1) leaves small pages.
fn collapse(start: *mut u8, len: usize) {
    let advise = |offset: usize, len: usize, advice: libc::c_int| {
        // SAFETY: the range lies in the mapping, and the advices used here keep its contents.
        let _ = unsafe { libc::madvise(start.wrapping_add(offset).cast(), len, advice) };
    };
    for huge_page in (0..len).step_by(HUGE_PAGE as usize) {
        // One page has to be there: the kernel takes an empty range for a truncated file.
        advise(huge_page, 4096, libc::MADV_POPULATE_WRITE);
    }
    advise(0, len, libc::MADV_COLLAPSE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_goes_around_the_device_hole() {
        assert_eq!(layout(128 << 20), [(0, 128 << 20)]);
        assert_eq!(layout(3 << 30), [(0, 3 << 30)]);
        assert_eq!(layout(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
        let ram = GuestRam::new(5 << 30).unwrap();
        assert_eq!(ram.regions(), layout(5 << 30));
        ram.memory().write_obj(7u64, GuestAddress((6 << 30) - 8)).unwrap();
        assert!(ram.memory().write_obj(7u64, GuestAddress(6 << 30)).is_err());
        assert!(ram.memory().write_obj(7u64, GuestAddress(HOLE_START)).is_err());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 4095, u64::MAX] {
            assert!(matches!(GuestRam::new(size), Err(MemoryError::Size(_))), "{size}");
        }
    }

    #[test]
    fn populating_keeps_contents_and_stays_inside() {
        let ram = GuestRam::new((6 << 20) + 4096).unwrap();
        ram.memory().write_obj(7u64, GuestAddress(0x12_3456)).unwrap();
        ram.populate(0x12_3456, 1);
        ram.populate(0, u64::MAX);
        ram.populate(u64::MAX, u64::MAX);
        assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x12_3456)).unwrap(), 7);
        let region = ram.memory().iter().next().unwrap();
        assert_eq!(region.as_ptr() as u64 % HUGE_PAGE, 0);
    }

    #[test]
    fn nobody_can_shrink_the_file() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(0).is_err());
    }
}
