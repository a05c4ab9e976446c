//! Loads what a guest starts from: its kernel, told what it is and checked for being whole, and its image.
//!
//! Not `linux_loader`'s: that reads as it loads, into a memory that is there by then, and tells no bzImage that was
//! cut short from a whole one. Here a file is refused, and its need of memory known, before KVM is asked for anything.

use crate::memory::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const ELF_HEADER_LEN: usize = 64;
const ELF_SEGMENT_LEN: usize = 56;
const ELF_64_BIT_LITTLE_ENDIAN: [u8; 2] = [2, 1];
const ELF_EXECUTABLE: [u16; 2] = [2, 3];
const ELF_MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 64;

const BZIMAGE_HEADER: u64 = 0x1f1;
const BZIMAGE_MAGIC: u32 = 0x5372_6448;
/// Boot protocol 2.12: `xloadflags`.
const BZIMAGE_MIN_VERSION: u16 = 0x020c;
const BZIMAGE_LOADED_HIGH: u8 = 1;
const BZIMAGE_HAS_64_BIT_ENTRY: u16 = 1;
const BZIMAGE_64_BIT_ENTRY: u64 = 0x200;
const SECTOR: u64 = 512;

/// Why a file can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It does not open.
    #[error("{what} {}: can't be opened", .path.display())]
    Open {
        /// "guest kernel" or "guest image".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not read, or does not go into guest memory.
    #[error("{what} {}: can't be read", .path.display())]
    Read {
        /// "guest kernel" or "guest image".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Neither a 64-bit x86 ELF executable nor a bzImage with a 64-bit entry.
    #[error("guest kernel {}: not a kernel: {why}", .path.display())]
    NotAKernel {
        /// Which.
        path: PathBuf,
        /// What it is or lacks.
        why: &'static str,
    },
    /// It ends before what its headers say.
    #[error("guest kernel {}: truncated: it has {has} bytes of {needs}", .path.display())]
    Truncated {
        /// Which.
        path: PathBuf,
        /// Bytes that are there.
        has: u64,
        /// Bytes that its headers speak of.
        needs: u64,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "install it (`make install`), or correct its path in the configuration".into()
            }
            Self::Open { path, .. } | Self::Read { path, .. } => {
                format!("make {} a regular file that root can read", path.display())
            }
            Self::NotAKernel { .. } => {
                "give the path of an uncompressed 64-bit vmlinux or of a bzImage".into()
            }
            Self::Truncated { path, .. } => {
                format!("copy {} again: it is incomplete", path.display())
            }
        }
    }
}

/// A part of the file and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    file_len: u64,
    address: u64,
    /// Memory in use from `address` once the kernel runs, at least `file_len`.
    memory_len: u64,
}

/// A kernel that is whole.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    file: File,
    entry: u64,
    header: Option<setup_header>,
    segments: Vec<Segment>,
}

impl KernelImage {
    /// Opens and checks a kernel.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let (file, len) = open_regular("guest kernel", path)?;
        let parser = Parser { path, file: &file, len };
        let mut magic = [0u8; 4];
        parser.read(&mut magic, 0)?;
        let (entry, header, segments) =
            if magic == *b"\x7fELF" { parser.elf()? } else { parser.bzimage()? };
        Ok(Self { path: path.to_owned(), file, entry, header, segments })
    }

    /// Where the kernel is entered in 64-bit mode.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The header that a bzImage brings for the zero page.
    pub fn header(&self) -> Option<&setup_header> {
        self.header.as_ref()
    }

    /// First address that the kernel needs at the start.
    pub fn start(&self) -> u64 {
        self.segments.iter().map(|s| s.address).min().unwrap_or(0)
    }

    /// First address after what the kernel needs at the start.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address + s.memory_len).max().unwrap_or(0)
    }

    /// Copies the kernel to where it belongs. The memory reaches to [`KernelImage::end`].
    ///
    /// # Errors
    /// [`LoadError::Read`].
    pub fn load(&mut self, ram: &GuestRam) -> Result<(), LoadError> {
        for segment in &self.segments {
            copy(&mut self.file, segment, ram).map_err(|source| LoadError::Read {
                what: "guest kernel",
                path: self.path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// The initial RAM disk's file.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Initrd {
    /// Opens it; its contents are the guest's affair.
    ///
    /// # Errors
    /// [`LoadError::Open`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let (file, len) = open_regular("guest image", path)?;
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies it to `address`.
    ///
    /// # Errors
    /// [`LoadError::Read`].
    pub fn load(&mut self, ram: &GuestRam, address: u64) -> Result<(), LoadError> {
        let whole = Segment { file_offset: 0, file_len: self.len, address, memory_len: self.len };
        copy(&mut self.file, &whole, ram).map_err(|source| LoadError::Read {
            what: "guest image",
            path: self.path.clone(),
            source,
        })
    }
}

fn copy(
    file: &mut File,
    segment: &Segment,
    ram: &GuestRam,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    file.seek(SeekFrom::Start(segment.file_offset))?;
    ram.memory().read_exact_volatile_from(
        GuestAddress(segment.address),
        file,
        segment.file_len as usize,
    )?;
    Ok(())
}

fn open_regular(what: &'static str, path: &Path) -> Result<(File, u64), LoadError> {
    let open = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((file, metadata.len()))
    };
    open().map_err(|source| LoadError::Open { what, path: path.to_owned(), source })
}

type Parsed = (u64, Option<setup_header>, Vec<Segment>);

struct Parser<'a> {
    path: &'a Path,
    file: &'a File,
    len: u64,
}

impl Parser<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), LoadError> {
        self.check_len(offset.saturating_add(buffer.len() as u64))?;
        self.file.read_exact_at(buffer, offset).map_err(|e| LoadError::Read {
            what: "guest kernel",
            path: self.path.to_owned(),
            source: e.into(),
        })
    }

    fn check_len(&self, needs: u64) -> Result<(), LoadError> {
        if needs > self.len {
            return Err(LoadError::Truncated { path: self.path.to_owned(), has: self.len, needs });
        }
        Ok(())
    }

    fn not_a_kernel(&self, why: &'static str) -> LoadError {
        LoadError::NotAKernel { path: self.path.to_owned(), why }
    }

    /// ELF-64 (System V ABI, chapter 4), as far as `vmlinux` uses it.
    fn elf(&self) -> Result<Parsed, LoadError> {
        let mut header = [0u8; ELF_HEADER_LEN];
        self.read(&mut header, 0)?;
        let u16_at = |i: usize| u16::from_le_bytes([header[i], header[i + 1]]);
        if header[4..6] != ELF_64_BIT_LITTLE_ENDIAN
            || !ELF_EXECUTABLE.contains(&u16_at(16))
            || u16_at(18) != ELF_MACHINE_X86_64
        {
            return Err(self.not_a_kernel("an ELF file, but not an executable for 64-bit x86"));
        }
        let (entry_size, count) = (u16_at(54), u16_at(56));
        if usize::from(entry_size) != ELF_SEGMENT_LEN || count == 0 || count > MAX_SEGMENTS {
            return Err(self.not_a_kernel("its ELF program headers make no sense"));
        }
        let mut table = vec![0u8; usize::from(count) * ELF_SEGMENT_LEN];
        self.read(&mut table, u64_at(&header, 32))?;
        let mut segments = Vec::new();
        for raw in table.chunks_exact(ELF_SEGMENT_LEN) {
            if u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) == PT_LOAD {
                let file_len = u64_at(raw, 32);
                segments.push(self.segment(Segment {
                    file_offset: u64_at(raw, 8),
                    file_len,
                    address: u64_at(raw, 24),
                    memory_len: u64_at(raw, 40).max(file_len),
                })?);
            }
        }
        let entry = u64_at(&header, 24);
        if !segments.iter().any(|s| (s.address..s.address + s.file_len).contains(&entry)) {
            return Err(self.not_a_kernel("its entry point lies in none of its segments"));
        }
        Ok((entry, None, segments))
    }

    /// `Documentation/arch/x86/boot.rst`
    fn bzimage(&self) -> Result<Parsed, LoadError> {
        let unknown = || self.not_a_kernel("neither an ELF file nor a bzImage");
        let mut header = setup_header::default();
        if self.len < BZIMAGE_HEADER + size_of::<setup_header>() as u64 {
            return Err(unknown());
        }
        self.read(header.as_mut_slice(), BZIMAGE_HEADER)?;
        if header.header != BZIMAGE_MAGIC {
            return Err(unknown());
        }
        if header.version < BZIMAGE_MIN_VERSION
            || header.loadflags & BZIMAGE_LOADED_HIGH == 0
            || header.xloadflags & BZIMAGE_HAS_64_BIT_ENTRY == 0
        {
            return Err(self.not_a_kernel("a bzImage without a 64-bit entry point"));
        }
        let setup_sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
        let file_offset = (u64::from(setup_sectors) + 1) * SECTOR;
        let file_len = u64::from(header.syssize) * 16;
        let address = u64::from(header.code32_start);
        // It unpacks itself to `pref_address`, and uses `init_size` from there.
        let end = (header.pref_address.saturating_add(u64::from(header.init_size)))
            .max(address + file_len);
        let memory_len = end.saturating_sub(address);
        let segment = self.segment(Segment { file_offset, file_len, address, memory_len })?;
        Ok((address + BZIMAGE_64_BIT_ENTRY, Some(header), vec![segment]))
    }

    /// Passes a segment whose numbers make sense and whose bytes are there.
    fn segment(&self, segment: Segment) -> Result<Segment, LoadError> {
        const MAX_ADDRESS: u64 = 1 << 40;
        if segment.address > MAX_ADDRESS || segment.memory_len > MAX_ADDRESS {
            return Err(self.not_a_kernel("a segment lies outside of any memory"));
        }
        self.check_len(segment.file_offset.saturating_add(segment.file_len))?;
        Ok(segment)
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
