//! Guest memory: one memfd, mapped shared, below and above the device hole.
//!
//! One file, so that a file server (vhost-user) can map it and a snapshot can share it.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use protocol::machine::{HOLE_END_MIB, HOLE_START_MIB, MEMORY_BLOCK_MIB};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, mmap::MmapRegionBuilder,
};

/// Where memory stops below 4 GiB; devices, IO-APIC, local APICs and the TSS lie above.
pub const HOLE_START: u64 = HOLE_START_MIB << 20;

/// Where memory goes on.
pub const HOLE_END: u64 = HOLE_END_MIB << 20;

/// Size and alignment of a huge page, bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Most bytes of room: 8,192 of KVM's 32,764 slots.
const MAX_ROOM: u64 = 1 << 40;

/// KVM's slot that comes after those of all memory that a machine can have.
pub const NEXT_SLOT: u32 = 2 + (MAX_ROOM / BLOCK) as u32;

/// How guest memory is mapped.
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_SHARED | libc::MAP_NORESERVE;

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

/// Memory is added to a running machine in blocks of so many bytes, each a slot of KVM's.
pub const BLOCK: u64 = MEMORY_BLOCK_MIB << 20;

/// A machine's memory.
pub struct GuestRam {
    /// What the machine starts with.
    initial: GuestMemoryMmap,
    room: Option<Room>,
    memory: GuestMemoryMmap,
}

/// The part of the file that a running machine can be given.
struct Room {
    file: Arc<File>,
    /// Where in the file it begins.
    offset: u64,
    /// Where it is mapped.
    mapping: MmapRegion,
    /// Guest address.
    start: u64,
    /// How much of it is the guest's, bytes; whole blocks, as is its size.
    added: u64,
    /// How much of it may hold pages of the host, bytes; at least what is the guest's.
    held: u64,
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
        Self::with_room(size, 0)
    }

    /// The same, with room for `room` bytes more (rounded down to blocks), which cost nothing yet.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn with_room(size: u64, room: u64) -> Result<Self, MemoryError> {
        let (size, room) = (size & !0xfff, room & !(BLOCK - 1));
        if size == 0 || size > 1 << 46 {
            return Err(MemoryError::Size(size));
        }
        let room = room.min(MAX_ROOM);
        let room_at = size.next_multiple_of(HUGE_PAGE);
        let file = sealed_file(room_at + room).map_err(|e| MemoryError::File(size >> 20, e))?;
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
        let initial =
            GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(e.into()))?;
        let room = (room > 0).then(|| Room::new(file, room_at, room, initial.last_addr().0));
        Ok(Self { memory: initial.clone(), room: room.transpose()?, initial })
    }

    /// The memory, for devices and loaders; clones share it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where memory that is added begins; 0 if there is no room for any.
    pub fn added_at(&self) -> u64 {
        self.room.as_ref().map_or(0, |room| room.start)
    }

    /// How much is added, bytes.
    pub fn added(&self) -> u64 {
        self.room.as_ref().map_or(0, |room| room.added)
    }

    /// Gives the guest of `vm` so much of the room, bytes (as much as there is, in whole blocks). What it
    /// loses is for [`Self::free_block`]. vCPUs and devices have to be stopped, and the devices be given
    /// [`Self::memory`] anew.
    ///
    /// # Errors
    /// See [`MemoryError`]; nothing has changed then.
    pub fn set_added(&mut self, vm: &VmFd, added: u64) -> Result<(), MemoryError> {
        let Some(room) = &mut self.room else { return Ok(()) };
        let added = added.min(room.mapping.size() as u64) & !(BLOCK - 1);
        let memory = match room.region(added)? {
            Some(region) => self.initial.insert_region(Arc::new(region)),
            None => Ok(self.initial.clone()),
        };
        let memory = memory.map_err(|e| MemoryError::Map(e.into()))?;
        let before = room.added;
        for block in (before..added).step_by(BLOCK as usize) {
            if let Err(e) = room.set_slot(vm, block, BLOCK) {
                for block in (before..block).step_by(BLOCK as usize) {
                    room.set_slot(vm, block, 0)?;
                }
                return Err(e);
            }
        }
        for block in (added..before).step_by(BLOCK as usize) {
            room.set_slot(vm, block, 0)?;
        }
        room.added = added;
        room.held = room.held.max(added);
        self.memory = memory;
        Ok(())
    }

    /// Whether there are blocks that the guest has lost and the host hasn't got back.
    pub fn has_lost(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.held > room.added)
    }

    /// Gives one of these back to the host, which takes up to tens of milliseconds; the guest may run.
    pub fn free_block(&mut self) {
        if let Some(room) = self.room.as_mut().filter(|room| room.held > room.added) {
            room.held -= BLOCK;
            let at = room.mapping.as_ptr().wrapping_add(room.held as usize);
            // SAFETY: the block lies in the mapping, and neither vCPUs nor devices have it in theirs.
            let _ = unsafe { libc::madvise(at.cast(), BLOCK as usize, libc::MADV_REMOVE) };
        }
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

impl Room {
    /// Room above a memory whose last byte is at `last`.
    fn new(file: Arc<File>, offset: u64, size: u64, last: u64) -> Result<Self, MemoryError> {
        let mapping = map(&file, offset, size)?;
        advise(&mapping);
        let start = HOLE_END.max(last + 1).next_multiple_of(BLOCK);
        Ok(Self { file, offset, mapping, start, added: 0, held: 0 })
    }

    /// Its first `len` bytes.
    fn region(&self, len: u64) -> Result<Option<GuestRegionMmap>, MemoryError> {
        if len == 0 {
            return Ok(None);
        }
        let part = describe(&self.file, self.offset, self.mapping.as_ptr(), len as usize)?;
        Ok(GuestRegionMmap::new(part, GuestAddress(self.start)))
    }

    /// Tells KVM that `len` bytes of the block at `offset` are there: all or none.
    fn set_slot(&self, vm: &VmFd, offset: u64, len: u64) -> Result<(), MemoryError> {
        let slot = kvm_userspace_memory_region {
            // After those of the initial memory, of which there are at most two.
            slot: 2 + (offset / BLOCK) as u32,
            flags: 0,
            guest_phys_addr: self.start + offset,
            memory_size: len,
            userspace_addr: self.mapping.as_ptr() as u64 + offset,
        };
        // SAFETY: as in `GuestRam::register`.
        unsafe { vm.set_user_memory_region(slot) }.map_err(MemoryError::Register)
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
    let fixed = MapFlags::from_bits_truncate(FLAGS) | MapFlags::MAP_FIXED;
    let access = ProtFlags::from_bits_truncate(PROTECTION);
    // SAFETY: the range lies in the reservation just made, which nothing else uses.
    let mapped = unsafe { mmap(at, size, access, fixed, file, offset as i64) }.map_err(refused)?;
    describe(file, offset, mapped.as_ptr().cast(), size.get())
}

/// A region of `len` bytes that are mapped at `start`, and stay so until the process ends.
fn describe(
    file: &Arc<File>,
    offset: u64,
    start: *mut u8,
    len: usize,
) -> Result<MmapRegion, MemoryError> {
    let builder = MmapRegionBuilder::new(len)
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .with_mmap_prot(PROTECTION)
        .with_mmap_flags(FLAGS);
    // SAFETY: so much is mapped there, and never unmapped.
    unsafe { builder.with_raw_mmap_pointer(start) }.build().map_err(|e| MemoryError::Map(e.into()))
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
    use nix::unistd::Whence;
    use std::os::linux::fs::MetadataExt;
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
        let region = ram.memory().iter().next().unwrap();
        assert_eq!(region.as_ptr() as u64 % HUGE_PAGE, 0);
        let file = region.file_offset().unwrap().file();
        let held = || file.metadata().unwrap().st_blocks() * 512;
        ram.populate(0x22_3456, 1);
        // A page of it at least, all of it where the host has huge pages for it.
        assert!((4096..=HUGE_PAGE).contains(&held()), "{}", held());
        for page in (0..6 << 20).step_by(4096) {
            ram.memory().write_obj(page ^ 0x5a5a, GuestAddress(page)).unwrap();
        }
        ram.populate(0, u64::MAX);
        ram.populate(u64::MAX, u64::MAX);
        for page in (0..6u64 << 20).step_by(4096) {
            assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(page)).unwrap(), page ^ 0x5a5a);
        }
        // The last page is no whole huge page, and was not touched.
        assert_eq!(held(), 6 << 20);
    }

    #[test]
    fn what_is_populated_is_there_before_it_is_touched() {
        let ram = GuestRam::new(8 << 20).unwrap();
        let file = ram.memory().iter().next().unwrap().file_offset().unwrap().file().try_clone();
        ram.populate(2 << 20, 4 << 20);
        let data = |at| nix::unistd::lseek(file.as_ref().unwrap(), at, Whence::SeekData);
        assert_eq!((data(0), data(4 << 20)), (Ok(2 << 20), Ok(4 << 20)));
        assert_eq!(data(6 << 20), Err(nix::Error::ENXIO));
    }

    #[test]
    fn nobody_can_shrink_the_file() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn added_memory_comes_and_goes_in_blocks_and_leaves_nothing_on_the_host() {
        let kvm = crate::kvm::open_at(std::path::Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let mut ram = GuestRam::with_room(5 << 20, 4 * BLOCK - 1).unwrap();
        ram.register(&vm).unwrap();
        assert_eq!((ram.added_at(), ram.size()), (HOLE_END, 5 << 20));
        ram.set_added(&vm, 3 * BLOCK - 1).unwrap();
        assert_eq!((ram.added(), ram.regions()[1]), (2 * BLOCK, (HOLE_END, 2 * BLOCK)));
        for block in 0..2 {
            let at = GuestAddress(HOLE_END + block * BLOCK);
            ram.memory().write_obj(7u64, at).unwrap();
        }
        let file = ram.memory().iter().next().unwrap().file_offset().unwrap().file().try_clone();
        let held = || file.as_ref().unwrap().metadata().unwrap().st_blocks() * 512;
        let before = held();
        ram.set_added(&vm, BLOCK).unwrap();
        assert!(ram.memory().write_obj(7u64, GuestAddress(HOLE_END + BLOCK)).is_err());
        // That may take long, and nobody stands meanwhile.
        assert!(ram.has_lost() && held() == before);
        ram.free_block();
        assert!(!ram.has_lost() && held() < before);
        // All that there is, and no more.
        ram.set_added(&vm, u64::MAX).unwrap();
        assert_eq!(ram.added(), 3 * BLOCK);
        let read = |at| ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!([HOLE_END, HOLE_END + BLOCK].map(read), [7, 0]);
        ram.set_added(&vm, 0).unwrap();
        assert_eq!(ram.regions(), layout(5 << 20));
        let blocks = std::iter::from_fn(|| ram.has_lost().then(|| ram.free_block()));
        assert_eq!((blocks.count(), held()), (3, 0));
        // What has become the guest's again is not taken from it.
        ram.set_added(&vm, 2 * BLOCK).unwrap();
        ram.set_added(&vm, 0).unwrap();
        ram.set_added(&vm, BLOCK).unwrap();
        ram.memory().write_obj(8u64, GuestAddress(HOLE_END)).unwrap();
        ram.free_block();
        ram.free_block();
        assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(HOLE_END)).unwrap(), 8);
    }

    #[test]
    fn without_room_nothing_is_added() {
        let kvm = crate::kvm::open_at(std::path::Path::new(crate::kvm::DEVICE)).unwrap();
        let vm = crate::kvm::create_vm(&kvm).unwrap();
        let mut ram = GuestRam::with_room(5 << 30, BLOCK - 1).unwrap();
        ram.set_added(&vm, BLOCK).unwrap();
        assert_eq!((ram.added(), ram.added_at(), ram.size()), (0, 0, 5 << 30));
    }
}
