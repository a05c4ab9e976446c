//! Guest memory, as the VMM has last described it.

use std::ffi::c_void;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The memory type that virtiofsd's readers and writers are made for.
pub type Regions = GuestMemoryMmap<BitmapMmapRegion>;

/// Guest memory, which the VMM can describe anew while requests are served.
pub type Memory = GuestMemoryAtomic<Regions>;

/// Huge pages for what is written there first, as the VMM asks for them: each page that the guest finds small costs it an exit.
/// Where the host gives some to shared memory (`shmem_enabled`) it also chooses an address for them. A wish: without,
/// everything is the same.
pub(crate) fn wish_huge_pages(region: &MmapRegion<BitmapMmapRegion>) {
    let start = region.as_ptr().cast::<c_void>();
    // SAFETY: the range is exactly the mapping, and the advice does not change its contents.
    let _ = unsafe { libc::madvise(start, region.size(), libc::MADV_HUGEPAGE) };
}
