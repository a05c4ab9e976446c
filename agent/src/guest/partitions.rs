//! Partitions of a disk that has no table of them: the kernel is told, for as long as it has the disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `struct blkpg_ioctl_arg` of linux/blkpg.h.
#[repr(C)]
pub struct Argument {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut Partition,
}

/// `struct blkpg_partition`; offset and length in bytes, the names are not used.
#[repr(C)]
struct Partition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    names: [[libc::c_char; 64]; 2],
}

/// `BLKPG_ADD_PARTITION`.
const ADD: libc::c_int = 1;

// BLKPG
nix::ioctl_write_ptr_bad!(blkpg, 0x1269, Argument);

/// Makes partition `number`, from 1, of so many bytes from `offset` on, on the whole disk with this node.
///
/// # Errors
/// The kernel's: it is no disk, or the partition is not within it, or overlaps one there is.
pub fn add(node: &Path, number: usize, offset: u64, bytes: u64) -> io::Result<()> {
    let disk = File::open(node)?;
    let odd = |_| io::ErrorKind::InvalidInput;
    let mut partition = Partition {
        start: offset.try_into().map_err(odd)?,
        length: bytes.try_into().map_err(odd)?,
        number: number.try_into().map_err(odd)?,
        names: [[0; 64]; 2],
    };
    let datalen = size_of::<Partition>() as libc::c_int;
    let argument = Argument { op: ADD, flags: 0, datalen, data: &raw mut partition };
    // SAFETY: both structures have the kernel's layout and outlive the call.
    unsafe { blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_reads_has_its_layout() {
        assert_eq!((size_of::<Argument>(), std::mem::offset_of!(Argument, data)), (24, 16));
        assert_eq!(size_of::<Partition>(), 152);
        assert_eq!(std::mem::offset_of!(Partition, number), 16);
    }

    #[test]
    fn what_is_no_disk_has_no_partitions() {
        let error = add(Path::new("/dev/null"), 1, 0, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        let error = add(Path::new("/dev/null"), 1, u64::MAX, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
