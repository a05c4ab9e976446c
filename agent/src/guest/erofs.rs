//! What the kernel leaves out when it mounts EROFS: whether the image is whole. One that was cut has its names, and fails
//! a program that reads a file much later.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The superblock begins there, bytes; `struct erofs_super_block` of fs/erofs/erofs_fs.h.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

/// Looks at the image on a disk.
///
/// # Errors
/// It can't be read, is no EROFS, or has less than its superblock says.
pub fn check(disk: &Path) -> io::Result<()> {
    let mut disk = File::open(disk)?;
    let bytes = disk.seek(SeekFrom::End(0))?;
    let mut superblock = [0; 40];
    disk.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let whole = size(&superblock).ok_or_else(|| invalid("it is no EROFS image".into()))?;
    if whole > bytes {
        return Err(invalid(format!("the image was cut: it has {bytes} of {whole} bytes")));
    }
    Ok(())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What a superblock says of the size of its image, bytes.
fn size(superblock: &[u8; 40]) -> Option<u64> {
    let number = |at: usize| superblock[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    if number(0)? != MAGIC {
        return None;
    }
    let (block_bits, blocks) = (superblock[12], u64::from(number(36)?));
    // The kernel takes 9 to the bits of a page; the largest there are have 16.
    (9..=16).contains(&block_bits).then_some(blocks << block_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of so many bytes whose superblock says that it has 3 blocks of 4096.
    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(bytes).unwrap();
        let put = |at: u64, value: &[u8]| {
            image.as_file().write_all_at(value, SUPERBLOCK + at).unwrap();
        };
        put(0, &MAGIC.to_le_bytes());
        put(12, &[12]);
        put(36, &3_u32.to_le_bytes());
        image.as_file().set_len(bytes).unwrap();
        image
    }

    #[test]
    fn an_image_that_was_cut_is_told_from_a_whole_one() {
        for bytes in [12288, 12800, 1 << 20] {
            check(image(bytes).path()).unwrap();
        }
        let error = check(image(12287).path()).unwrap_err().to_string();
        assert!(error.contains("12287 of 12288"), "{error}");
        assert!(check(image(1063).path()).is_err());
    }

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let other = tempfile::NamedTempFile::new().unwrap();
        other.as_file().set_len(1 << 20).unwrap();
        let error = check(other.path()).unwrap_err().to_string();
        assert!(error.contains("no EROFS"), "{error}");
        let odd = image(12288);
        odd.as_file().write_all_at(&[63], SUPERBLOCK + 12).unwrap();
        assert!(check(odd.path()).is_err());
    }
}
