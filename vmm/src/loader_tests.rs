use super::*;
use std::io::Write;

/// A file that is removed when the test ends.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("kata-like-kernel-test-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An ELF executable with one segment of 0x100 bytes at 1 MiB, entered at its start.
fn elf() -> Vec<u8> {
    let mut file = vec![0u8; 0x1100];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16] = 2;
    file[18] = 62;
    file[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54] = 56;
    file[56] = 1;
    let segment = &mut file[64..120];
    segment[0] = 1;
    for (offset, value) in [(8, 0x1000u64), (24, 0x10_0000), (32, 0x100), (40, 0x3000)] {
        segment[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[0x1000..].fill(0x5a);
    file
}

fn bzimage() -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        header: BZIMAGE_MAGIC,
        version: 0x20f,
        loadflags: 1,
        xloadflags: 1,
        code32_start: 0x10_0000,
        syssize: 64,
        pref_address: 0x100_0000,
        init_size: 0x2000,
        ..Default::default()
    };
    let mut file = vec![0u8; 1024 + 1024];
    let start = BZIMAGE_HEADER as usize;
    file[start..start + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    file[1024..].fill(0xa5);
    file
}

#[test]
fn an_elf_kernel_goes_where_its_segments_say() {
    let file = Temporary::new("elf", &elf());
    let mut kernel = KernelImage::open(&file.0).unwrap();
    assert_eq!((kernel.entry(), kernel.end()), (0x10_0000, 0x10_3000));
    let ram = GuestRam::new(4 << 20).unwrap();
    kernel.load(&ram).unwrap();
    let mut bytes = [0u8; 0x101];
    ram.memory().read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
    assert!(bytes[..0x100].iter().all(|b| *b == 0x5a));
    assert_eq!(bytes[0x100], 0);
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    let file = Temporary::new("bzimage", &bzimage());
    let mut kernel = KernelImage::open(&file.0).unwrap();
    assert_eq!((kernel.entry(), kernel.end()), (0x10_0200, 0x100_2000));
    assert!(kernel.header().is_some());
    let ram = GuestRam::new(32 << 20).unwrap();
    kernel.load(&ram).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x10_03ff)).unwrap(), 0xa5);
}

#[test]
fn every_truncation_is_told_from_a_whole_kernel() {
    for (name, whole) in [("elf-cut", elf()), ("bz-cut", bzimage())] {
        for len in 0..whole.len() {
            if len % 97 == 0 || len < 130 || whole.len() - len < 3 {
                let file = Temporary::new(name, &whole[..len]);
                let error = KernelImage::open(&file.0).unwrap_err();
                assert!(error.to_string().contains(&*file.0.to_string_lossy()), "{error}");
                assert!(!error.remedy().is_empty());
            }
        }
        let file = Temporary::new(name, &whole[..whole.len() - 1]);
        let error = KernelImage::open(&file.0).unwrap_err();
        assert!(matches!(error, LoadError::Truncated { .. }), "{error}");
    }
}

#[test]
fn what_is_not_a_kernel_is_refused_by_name() {
    let missing = KernelImage::open(Path::new("/nonexistent/vmlinux")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/vmlinux"));
    assert!(missing.remedy().contains("install"));
    let directory = KernelImage::open(Path::new("/tmp")).unwrap_err();
    assert!(matches!(directory, LoadError::Open { .. }));
    let text = Temporary::new("text", &[b'x'; 4096]);
    let error = KernelImage::open(&text.0).unwrap_err();
    assert!(matches!(error, LoadError::NotAKernel { .. }), "{error}");
}

#[test]
fn absurd_numbers_in_headers_are_refused() {
    // Offsets of the file offset, address, file length and memory length of the segment; the
    // entry; and the offset of the program headers.
    for offset in [64 + 8, 64 + 24, 64 + 32, 64 + 40, 24, 32] {
        let mut bytes = elf();
        bytes[offset..offset + 8].fill(0xff);
        let file = Temporary::new("absurd", &bytes);
        assert!(KernelImage::open(&file.0).is_err(), "offset {offset}");
    }
}
