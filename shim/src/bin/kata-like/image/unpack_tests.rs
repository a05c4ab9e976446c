//! Layers as people make them, and as they shouldn't.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use tempfile::TempDir;

struct Scratch {
    _directory: TempDir,
    outside: PathBuf,
    path: PathBuf,
    root: Root,
    trash: Trash,
    allowance: Allowance,
}

fn scratch() -> Scratch {
    assert!(nix::unistd::geteuid().is_root(), "unpacking sets owners: run this test as root");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root");
    let (trash, outside) = (directory.path().join("trash"), directory.path().join("outside"));
    for directory in [&path, &trash, &outside] {
        fs::create_dir(directory).unwrap();
    }
    let trash = Trash::new(File::open(trash).unwrap().into());
    let root = Root::open(&path).unwrap();
    let allowance = Allowance::new(64 << 20);
    Scratch { _directory: directory, outside, path, root, trash, allowance }
}

/// A tar file: kind, name, target or content.
fn layer(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000);
        // Not set_path: it refuses the names that matter here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let content = if kind.is_file() { text.as_bytes() } else { b"" };
        if kind.is_symlink() || kind.is_hard_link() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

impl Scratch {
    fn apply(&mut self, entries: &[(EntryType, &str, &str)]) -> Result<()> {
        self.unpack(&layer(entries))
    }

    fn unpack(&mut self, tar: &[u8]) -> Result<()> {
        unpack(tar, &self.root, &mut self.trash, &self.allowance)
    }

    /// What is wrong with a tar file.
    fn refused(&mut self, tar: &[u8]) -> String {
        format!("{:#}", self.unpack(tar).expect_err("it is refused"))
    }

    fn has(&self, name: &str) -> bool {
        self.path.join(name).symlink_metadata().is_ok()
    }
}

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

#[test]
fn a_layer_becomes_files_with_their_owner_mode_and_time() {
    let mut scratch = scratch();
    scratch
        .apply(&[
            (DIRECTORY, "./", ""),
            (FILE, "bin/tool", "content"),
            (LINK, "bin/same", "bin/tool"),
            (SYMLINK, "bin/link", "tool"),
            (DIRECTORY, "empty/", ""),
            (EntryType::Fifo, "pipe", ""),
        ])
        .unwrap();
    let metadata = scratch.path.join("bin/tool").metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mtime()), (12, 34, 1_000_000));
    assert_eq!(metadata.mode() & 0o7777, 0o4755);
    assert_eq!(metadata.ino(), scratch.path.join("bin/same").metadata().unwrap().ino());
    assert_eq!(fs::read_to_string(scratch.path.join("bin/link")).unwrap(), "content");
    assert_eq!(scratch.path.join("bin/link").symlink_metadata().unwrap().uid(), 12);
    assert_eq!(scratch.path.join("empty").metadata().unwrap().mtime(), 1_000_000);
    assert_eq!(scratch.path.metadata().unwrap().uid(), 12);
    assert!(scratch.has("pipe"));
}

#[test]
fn a_later_layer_replaces_whatever_is_there() {
    let mut scratch = scratch();
    scratch
        .apply(&[
            (FILE, "a/b/c", "1"),
            (SYMLINK, "link", "a"),
            (FILE, "file", "1"),
            (FILE, "keep/x", ""),
        ])
        .unwrap();
    scratch
        .apply(&[
            (FILE, "a", "now a file"),
            (DIRECTORY, "link", ""),
            (SYMLINK, "file", "a"),
            (DIRECTORY, "keep", ""),
        ])
        .unwrap();
    assert_eq!(fs::read_to_string(scratch.path.join("a")).unwrap(), "now a file");
    assert!(scratch.path.join("link").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_link(scratch.path.join("file")).unwrap(), PathBuf::from("a"));
    assert!(scratch.has("keep/x"));
}

#[test]
fn whiteouts_remove_what_is_below_and_not_their_own_layer() {
    let mut scratch = scratch();
    scratch
        .apply(&[
            (FILE, "gone/deep/file", ""),
            (FILE, "dir/old", ""),
            (FILE, "dir/sub/old", ""),
            (FILE, "kept", ""),
        ])
        .unwrap();
    scratch
        .apply(&[
            (FILE, ".wh.gone", ""),
            (FILE, ".wh.never-there", ""),
            (FILE, "dir/sub/new", ""),
            (FILE, "dir/.wh..wh..opq", ""),
            (FILE, "dir/new", ""),
        ])
        .unwrap();
    for name in ["gone", "dir/old", "dir/sub/old", ".wh.gone", "dir/.wh..wh..opq"] {
        assert!(!scratch.has(name), "{name}");
    }
    for name in ["kept", "dir/new", "dir/sub/new"] {
        assert!(scratch.has(name), "{name}");
    }
    scratch.trash.empty().unwrap();
}

#[test]
fn nothing_is_written_removed_or_linked_outside() {
    let mut scratch = scratch();
    fs::write(scratch.outside.join("precious"), "precious").unwrap();
    let outside = scratch.outside.display().to_string();
    let hostile: [&[(EntryType, &str, &str)]; 12] = [
        &[(FILE, "../outside/x", "")],
        &[(FILE, "/../outside/x", "")],
        &[(FILE, "a/../../outside/x", "")],
        &[(SYMLINK, "out", &outside), (FILE, "out/x", "")],
        &[(SYMLINK, "out", "../outside"), (FILE, "out/x", "")],
        &[(SYMLINK, "out", "../outside/x"), (FILE, "out", "")],
        &[(SYMLINK, "out", "../outside"), (DIRECTORY, "out", ""), (FILE, "out/x", "")],
        &[(SYMLINK, "out", "../outside"), (FILE, "out/.wh.precious", "")],
        &[(SYMLINK, "out", "../outside"), (FILE, "out/.wh..wh..opq", "")],
        &[(LINK, "stolen", "../outside/precious")],
        &[(SYMLINK, "out", "../outside"), (LINK, "stolen", "out/precious")],
        &[(FILE, ".wh...", "")],
    ];
    for entries in hostile {
        // Refused or done inside: both are right.
        let _ = scratch.apply(entries);
        let names: Vec<_> =
            fs::read_dir(&scratch.outside).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["precious"], "{entries:?}");
        let metadata = scratch.outside.join("precious").metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.uid()), (1, 0), "{entries:?}");
        scratch.apply(&[(FILE, ".wh.out", ""), (FILE, ".wh.stolen", "")]).unwrap();
    }
}

#[test]
fn a_link_that_is_there_before_is_replaced_and_not_followed() {
    let mut scratch = scratch();
    let target = scratch.outside.join("target");
    fs::write(&target, "before").unwrap();
    symlink(&target, scratch.path.join("link")).unwrap();
    scratch.apply(&[(FILE, "link", "after")]).unwrap();
    assert_eq!(fs::read_to_string(target).unwrap(), "before");
    assert_eq!(fs::read_to_string(scratch.path.join("link")).unwrap(), "after");
}

#[test]
fn a_broken_tar_file_is_an_error() {
    let mut scratch = scratch();
    assert!(scratch.unpack(&[7; 2048]).is_err());
    let mut cut = layer(&[(FILE, "file", &"x".repeat(4096))]);
    cut.truncate(1024);
    assert!(scratch.unpack(&cut).is_err());
}

/// A tar file's entry of any kind, its header as `set` makes it.
fn entry(kind: u8, content: &[u8], set: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    header.set_mode(0o755);
    (header.as_old_mut().name[0], header.as_old_mut().name[1]) = (b'f', 0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    set(&mut header);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

#[test]
fn headers_before_an_entry_are_short() {
    let mut scratch = scratch();
    let file = entry(b'0', b"", |_| {});
    let comment = |len: usize| {
        let rest = len - len.to_string().len() - " comment=\n".len();
        format!("{len} comment={}\n", "x".repeat(rest)).into_bytes()
    };
    scratch.unpack(&[entry(b'x', &comment(900_000), |_| {}), file.clone()].concat()).unwrap();
    for kind in *b"xLK" {
        let long = entry(kind, &comment(2_000_000), |_| {});
        let error = scratch.refused(&[long, file.clone()].concat());
        assert!(error.contains("headers are longer than 1048576 bytes"), "{error}");
    }
    // The map of a sparse file goes on and on.
    let sparse = entry(b'S', b"", |header| header.as_gnu_mut().unwrap().isextended[0] = 1);
    let mut more = [0; 512];
    more[504] = 1;
    let error = scratch.refused(&[sparse, more.repeat(3000)].concat());
    assert!(error.contains("headers are longer"), "{error}");
}

#[test]
fn files_that_take_more_than_they_may_are_refused() {
    let mut scratch = scratch();
    scratch.allowance = Allowance::new(1 << 20);
    // 300 files of one byte would take 300 blocks; so would 300 directories within each other.
    let names: Vec<String> = (0..300).map(|number| format!("{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (FILE, &**name, "x")).collect();
    let many = layer(&files);
    let error = scratch.refused(&many);
    assert!(error.contains("more than 1 MiB; see --max-image-mib"), "{error}");
    assert!(scratch.has("0") && !scratch.has("299"));
    // Empty ones take inodes.
    scratch.allowance = Allowance::new(64 << 20).with_files(200);
    let error = scratch.refused(&many);
    assert!(error.contains("more than 200 files"), "{error}");
    scratch.allowance = Allowance::new(1 << 20);
    let deep = b"d/".repeat(300);
    let error = scratch.refused(&[entry(b'L', &deep, |_| {}), entry(b'5', b"", |_| {})].concat());
    assert!(error.contains("more than 1 MiB"), "{error}");
    assert!(scratch.has("d") && !scratch.has(&"d/".repeat(257)));
}

/// Each of these is gone at the end, but not before it.
#[test]
fn what_is_made_again_and_again_is_paid_for_each_time() {
    let mut scratch = scratch();
    for name in ["again", "below/again"] {
        scratch.allowance = Allowance::new(1 << 20);
        let hide = name.replace("again", ".wh.again");
        let once = [(EntryType::Directory, name, ""), (FILE, &*hide, "")];
        let error = scratch.refused(&layer(&once.repeat(300)));
        assert!(error.contains("more than 1 MiB"), "{error}");
    }
}

#[test]
fn a_hard_link_to_something_in_no_directory_makes_none() {
    let mut scratch = scratch();
    assert!(scratch.apply(&[(EntryType::Link, "link", "a/b/c")]).is_err());
    assert!(!scratch.has("a"));
}

#[test]
fn a_directory_that_a_later_entry_removes_or_replaces_stays_away() {
    let mut scratch = scratch();
    let directory = (EntryType::Directory, "a/b", "");
    scratch.apply(&[directory, (FILE, ".wh.a", "")]).unwrap();
    assert!(!scratch.has("a"));
    scratch.apply(&[directory, (FILE, "a", "x")]).unwrap();
    assert!(scratch.path.join("a").is_file());
}

/// Names were kept with all that they are in: 2 MB for each of these.
#[test]
fn deep_names_take_no_more_memory_than_they_are_long() {
    let mut scratch = scratch();
    let deep = |last: usize| {
        let name = [&b"d/".repeat(1000)[..], last.to_string().as_bytes(), b"\0"].concat();
        [entry(b'L', &name, |_| {}), entry(b'0', b"", |_| {})].concat()
    };
    scratch.unpack(&(0..200).flat_map(deep).collect::<Vec<_>>()).unwrap();
    let mut names = Names::new();
    let name = [&b"d"[..]; 1000];
    let deep = names.add(&name).unwrap();
    let below = names.add(&[&name[..], &[b"x"]].concat()).unwrap();
    assert_eq!(names.child(deep, b"x"), Some(below));
}

#[test]
fn a_sparse_file_keeps_its_holes() {
    let mut scratch = scratch();
    // A block of data in the middle of 128 MiB.
    let sparse = |size: u64| {
        entry(b'S', &[7; 512], |header| {
            let gnu = header.as_gnu_mut().unwrap();
            let octal = |number: u64| format!("{number:011o}\0").into_bytes();
            gnu.sparse[0].offset.copy_from_slice(&octal(size / 2));
            gnu.sparse[0].numbytes.copy_from_slice(&octal(512));
            gnu.sparse[1].offset.copy_from_slice(&octal(size));
            gnu.sparse[1].numbytes.copy_from_slice(&octal(0));
            gnu.realsize.copy_from_slice(&octal(size));
        })
    };
    // More than its allowance, were it written out.
    let size = 128 << 20;
    scratch.unpack(&sparse(size)).unwrap();
    let file = File::open(scratch.path.join("f")).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() < 100, "{} blocks", metadata.blocks());
    let mut bytes = [0; 514];
    file.read_exact_at(&mut bytes, size / 2 - 1).unwrap();
    assert_eq!((bytes[0], &bytes[1..513], bytes[513]), (0, &[7; 512][..], 0));
}

#[test]
fn a_sparse_file_without_end_is_refused() {
    let mut scratch = scratch();
    let endless = entry(b'S', b"", |header| {
        let gnu = header.as_gnu_mut().unwrap();
        // Numbers in base 256.
        let number = [0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0];
        (gnu.sparse[0].offset, gnu.sparse[0].numbytes) = (number, *b"00000000000\0");
        gnu.realsize = number;
    });
    let error = scratch.refused(&endless);
    assert!(error.contains("more than 1024 GiB, holes included"), "{error}");
    let pax = entry(b'x', b"22 GNU.sparse.major=1\n", |_| {});
    let error = scratch.refused(&[pax, entry(b'0', b"", |_| {})].concat());
    assert!(error.contains("sparse file in the form of POSIX tar"), "{error}");
}
