//! The zero page: what a boot loader tells a Linux kernel
//! (`Documentation/arch/x86/boot.rst`, `zero-page.rst`).

use super::layout::{CMDLINE, HIGH_MEMORY, LOW_MEMORY_END, ZERO_PAGE};
use crate::memory::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const E820_RAM: u32 = 1;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Where a kernel without a header of its own (ELF) wants to be aligned.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Writes command line and zero page.
///
/// `header` is the kernel's own, if it came with one (bzImage). `cmdline` is without NUL, and
/// shorter than `CMDLINE_MAX`.
///
/// # Errors
/// If the memory is too small.
pub fn write(
    ram: &GuestRam,
    header: Option<&setup_header>,
    cmdline: &str,
    initrd: Option<Range>,
) -> Result<(), GuestMemoryError> {
    let memory = ram.memory();
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;

    let mut params = boot_params {
        hdr: header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some(Range { start, len }) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let map = memory_map(&ram.regions());
    params.e820_entries = map.len() as u8;
    for (entry, Range { start, len }) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr: start, size: len, type_: E820_RAM };
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE))
}

/// The usable memory, without the PC's legacy hole from 639 KiB to 1 MiB.
fn memory_map(regions: &[(u64, u64)]) -> Vec<Range> {
    let mut map = vec![Range { start: 0, len: LOW_MEMORY_END }];
    for &(start, len) in regions {
        let from = start.max(HIGH_MEMORY);
        if start + len > from {
            map.push(Range { start: from, len: start + len - from });
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_legacy_hole() {
        let low = Range { start: 0, len: LOW_MEMORY_END };
        let high = Range { start: 1 << 20, len: 127 << 20 };
        assert_eq!(memory_map(&[(0, 128 << 20)]), [low, high]);
        let beyond = Range { start: 4 << 30, len: 1 << 30 };
        assert_eq!(memory_map(&[(0, 1 << 20), (4 << 30, 1 << 30)]), [low, beyond]);
    }

    #[test]
    fn the_zero_page_points_to_command_line_and_initrd() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let initrd = Range { start: 3 << 20, len: 77 };
        write(&ram, None, "quiet", Some(initrd)).unwrap();
        let params: boot_params = ram.memory().read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let hdr = params.hdr;
        assert_eq!((hdr.cmd_line_ptr, hdr.cmdline_size), (CMDLINE as u32, 5));
        assert_eq!((hdr.ramdisk_image, hdr.ramdisk_size), (3 << 20, 77));
        assert_eq!(params.e820_entries, 2);
        let mut text = [1u8; 6];
        ram.memory().read_slice(&mut text, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&text, b"quiet\0");
    }
}
