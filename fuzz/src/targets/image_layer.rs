//! Layers of an image, unpacked one over another, and the look-up of a user in what comes out. Reaches every kind
//! of entry, long names, attributes, sparse files, both whiteouts, gzip and zstd. Checks that nothing outside the root
//! changes, and that no more is written than may be.
//!
//! Needs root, as unpacking does: without it every entry ends at its owner.

use crate::choices::Choices;
use crate::{image, scratch};
use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Kinds of entries that there are, and one that there isn't.
const KINDS: &[u8; 14] = b"01234567xgLZKS";
const MOST_ENTRIES: usize = 32;
const MOST_LAYERS: usize = 4;

/// How much may be unpacked, bytes.
const MOST: u64 = 256 << 10;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let scratch = scratch::directory();
    let path = |name: &str| scratch.path().join(name);
    for name in ["image", "root", "trash", "outside"] {
        fs::create_dir(path(name)).expect("a directory");
    }
    fs::write(path("outside/precious"), "precious").expect("a file");
    let root = image::Root::open(&path("root")).expect("a directory");
    let mut trash = image::Trash::new(File::open(path("trash")).expect("a directory").into());
    let mut layers = Vec::new();
    while !input.is_empty() && layers.len() < MOST_LAYERS {
        layers.push(layer(&mut input));
    }
    store(&layers, &path("image"));
    let image = image::Image::open(&path("image"), None).expect("a good image");
    let _ = image.unpack(&root, &mut trash, &image::Allowance::new(MOST));
    let (count, bytes) = taken(&path("root"));
    assert!((count - 1) * 4096 <= MOST && bytes <= MOST, "{count} files of {bytes} bytes");
    let _ = image::account(&root, "user:group");
    trash.empty().expect("the trash can be emptied");

    let outside = fs::read_dir(path("outside")).expect("a directory").count();
    let precious = path("outside/precious").metadata().expect("it is still there");
    let (mode, links) = (precious.permissions().mode() & 0o7777, precious.nlink());
    assert_eq!((outside, mode, links, precious.len()), (1, 0o644, 1, 8), "outside has changed");
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 4);
}

/// How many files and directories there are in one, and what they take of the disk, bytes.
fn taken(directory: &Path) -> (u64, u64) {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| {
        let path = entry.expect("an entry").path();
        let metadata = path.symlink_metadata().expect("it is there");
        // Of several names of a file the content is paid for once.
        let own = || (1, metadata.blocks() * 512 / metadata.nlink());
        if metadata.is_dir() { taken(&path) } else { own() }
    });
    entries.fold((1, 0), |(count, bytes), (more, taken)| (count + more, bytes + taken))
}

/// Stores layers as an image in Docker's form; one of three is packed with gzip, another with zstd, or seems to be.
fn store(layers: &[Vec<u8>], directory: &Path) {
    let names: Vec<_> = (0..layers.len()).map(|number| number.to_string()).collect();
    let digests: Vec<_> =
        layers.iter().map(|layer| format!("sha256:{:x}", Sha256::digest(layer))).collect();
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": digests}});
    let manifest = json!([{"Config": "config", "Layers": names}]);
    fs::write(directory.join("config"), config.to_string()).expect("a file");
    fs::write(directory.join("manifest.json"), manifest.to_string()).expect("a file");
    for (number, (name, layer)) in names.iter().zip(layers).enumerate() {
        let mut file = File::create(directory.join(name)).expect("a file");
        match number % 3 {
            0 => file.write_all(layer).expect("a file"),
            1 => {
                let mut packed = GzEncoder::new(file, Compression::fast());
                packed.write_all(layer).expect("a file");
            }
            _ => {
                let packed = compress_to_vec(&**layer, CompressionLevel::Fastest);
                file.write_all(&packed).expect("a file");
            }
        }
    }
}

/// A tar file of any entries, its checksums right.
fn layer(input: &mut Choices<'_>) -> Vec<u8> {
    let mut tar = Vec::new();
    for _ in 0..MOST_ENTRIES {
        let kind = input.byte();
        // Or the layer ends, with the rest of the last block cut off.
        if kind & 0x80 != 0 {
            break;
        }
        let gnu = kind & 0x20 != 0;
        let mut header = if gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
        header.set_entry_type(tar::EntryType::new(KINDS[usize::from(kind) % KINDS.len()]));
        header.set_mode(input.u16().into());
        header.set_uid(kind.into());
        header.set_gid(34);
        header.set_mtime(1_000_000);
        let (name, link) = (input.byte() % 101, input.byte() % 101);
        let (name, link) = (input.bytes(name.into()), input.bytes(link.into()));
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        let len = input.byte().into();
        let content = input.bytes(len);
        header.set_size(content.len() as u64);
        if let Some(gnu) = header.as_gnu_mut()
            && gnu.typeflag == [b'S']
        {
            // The map of its holes: one piece, and where it ends.
            let [at, len, end] = [(); 3].map(|()| u64::from(input.u16()) << (kind >> 2 & 4));
            gnu.sparse[0].offset.copy_from_slice(format!("{at:012o}").as_bytes());
            gnu.sparse[0].numbytes.copy_from_slice(format!("{len:012o}").as_bytes());
            gnu.sparse[1].offset.copy_from_slice(format!("{end:012o}").as_bytes());
            gnu.sparse[1].numbytes.copy_from_slice(b"000000000000");
            gnu.realsize.copy_from_slice(format!("{end:012o}").as_bytes());
        }
        if kind & 0x40 != 0 {
            // Any field as any bytes: numbers of the other form, another format.
            let (at, len) = (usize::from(input.u16()) % 500, input.below(13));
            let bytes = input.bytes(len);
            header.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        header.set_cksum();
        tar.extend(header.as_bytes());
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}
