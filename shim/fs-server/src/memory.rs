//! Guest memory, as the VMM has last described it.

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The memory type that virtiofsd's readers and writers are made for.
pub type Regions = GuestMemoryMmap<BitmapMmapRegion>;

/// Guest memory, which the VMM can describe anew while requests are served.
pub type Memory = GuestMemoryAtomic<Regions>;
