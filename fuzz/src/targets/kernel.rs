//! Kernel files. Reaches both formats down to the copy into guest memory and the zero page.

use crate::scratch;
use std::sync::LazyLock;
use vmm::arch::x86_64::boot;
use vmm::loader::KernelImage;
use vmm::memory::GuestRam;

const MEMORY: u64 = 8 << 20;
/// Its mapping stays until the process ends, so there is one.
static RAM: LazyLock<GuestRam> = LazyLock::new(|| GuestRam::new(MEMORY).expect("memory"));

/// Takes one input.
pub fn take(data: &[u8]) {
    let path = scratch::file("vmlinux");
    std::fs::write(&path, data).expect("a file");
    match KernelImage::open(&path) {
        Ok(mut kernel) => {
            assert!(kernel.start() <= kernel.end());
            if kernel.end() <= MEMORY {
                kernel.load(&RAM).expect("what is whole goes into memory");
                boot::write(&RAM, kernel.header(), "quiet", None).expect("the zero page");
            }
        }
        Err(error) => assert!(!error.remedy().is_empty()),
    }
}
