//! A writer for the one archive format that the kernel unpacks: cpio in its "newc" form
//! (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! What would differ between two builds has no place in [`Entry`]: every owner is root, every
//! time is zero and inodes are numbered in the order of writing.

use std::io::{self, Write};

/// The format's mark at the head of each entry.
const MAGIC: &str = "070701";
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Headers with their names, and contents, end at multiples of this.
const ALIGNMENT: u64 = 4;
/// A whole archive is padded to a multiple of this, as the `cpio` tool does.
const BLOCK: u64 = 512;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A character device.
    CharDevice {
        /// Driver.
        major: u32,
        /// Device of that driver.
        minor: u32,
    },
    /// A regular file and its contents.
    File(&'a [u8]),
}

/// One entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path from the root, without a leading slash.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: Kind<'a>,
}

/// Writes an archive, entry by entry. [`Writer::finish`] must be called at the end.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
    last_inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, last_inode: 0 }
    }

    /// Appends one entry. A directory must come before what is in it.
    ///
    /// # Errors
    /// Those of the underlying writer; `InvalidInput` for a path that is empty, absolute or holds
    /// NUL, and for contents of 4 GiB or more, which the format cannot hold.
    pub fn append(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.path.is_empty() || entry.path.starts_with('/') || entry.path.contains('\0') {
            return Err(invalid(format!("{:?} cannot be a path in the archive", entry.path)));
        }
        self.last_inode += 1;
        let (format, links, device, data): (u32, u32, (u32, u32), &[u8]) = match entry.kind {
            Kind::Directory => (S_IFDIR, 2, (0, 0), &[]),
            Kind::CharDevice { major, minor } => (S_IFCHR, 1, (major, minor), &[]),
            Kind::File(data) => (S_IFREG, 1, (0, 0), data),
        };
        let size = u32::try_from(data.len())
            .map_err(|_| invalid(format!("{} is too big for the archive", entry.path)))?;
        let fields =
            Fields { inode: self.last_inode, mode: format | entry.mode, links, size, device };
        self.header(entry.path, &fields)?;
        self.put(data)?;
        self.pad(ALIGNMENT)
    }

    /// Ends the archive and gives the underlying writer back.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, &Fields { links: 1, ..Fields::default() })?;
        self.pad(BLOCK)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, path: &str, fields: &Fields) -> io::Result<()> {
        let name_size =
            u32::try_from(path.len() + 1).map_err(|_| invalid("path too long".into()))?;
        let (owner, group, mtime, host_device, checksum) = (0, 0, 0, (0, 0), 0);
        let values = [
            fields.inode,
            fields.mode,
            owner,
            group,
            fields.links,
            mtime,
            fields.size,
            host_device.0,
            host_device.1,
            fields.device.0,
            fields.device.1,
            name_size,
            checksum,
        ];
        self.put(MAGIC.as_bytes())?;
        for value in values {
            self.put(format!("{value:08x}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad(ALIGNMENT)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, multiple: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(multiple) - self.written;
        self.put(&[0; BLOCK as usize][..missing as usize])
    }
}

/// The header's fields that differ between entries.
#[derive(Default)]
struct Fields {
    inode: u32,
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for entry in entries {
            writer.append(entry).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_file_is_laid_out_as_the_format_says() {
        let bytes = archive(&[Entry { path: "a", mode: 0o755, kind: Kind::File(b"hello") }]);
        let header = "070701\
            00000001000081ed00000000000000000000000100000000\
            0000000500000000000000000000000000000000\
            0000000200000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..120], b"hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(&bytes[230..241], b"TRAILER!!!\0");
        assert_eq!(bytes.len(), 512);
    }

    #[test]
    fn a_device_carries_its_numbers() {
        let kind = Kind::CharDevice { major: 5, minor: 1 };
        let bytes = archive(&[Entry { path: "dev/console", mode: 0o600, kind }]);
        let field =
            |index: usize| std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
        assert_eq!(field(1), "00002180");
        assert_eq!((field(9), field(10)), ("00000005", "00000001"));
    }

    #[test]
    fn inodes_are_numbered_in_order() {
        let directory = |path| Entry { path, mode: 0o755, kind: Kind::Directory };
        let bytes = archive(&[directory("abcdef"), directory("b")]);
        assert_eq!(&bytes[6..14], b"00000001");
        let second = (110 + 7_usize).next_multiple_of(4);
        assert_eq!(&bytes[second + 6..second + 14], b"00000002");
    }

    #[test]
    fn paths_that_would_not_unpack_are_refused() {
        for path in ["", "/init", "a\0b"] {
            let entry = Entry { path, mode: 0o755, kind: Kind::Directory };
            let error = Writer::new(Vec::new()).append(&entry).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
    }
}
