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
    Scratch { _directory: directory, outside, path, root, trash }
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
        unpack(&*layer(entries), &self.root, &mut self.trash)
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
    assert!(unpack(&[7; 2048][..], &scratch.root, &mut scratch.trash).is_err());
    let mut cut = layer(&[(FILE, "file", &"x".repeat(4096))]);
    cut.truncate(1024);
    assert!(unpack(&*cut, &scratch.root, &mut scratch.trash).is_err());
}
