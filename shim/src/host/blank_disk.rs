//! Disks with an empty file system that are made for one container: files without a name, so nothing is left of them when
//! the last who has them open has ended, however that comes.

use super::disk::OpenDisk;
use crate::error::{Error, Result};
use protocol::ports::ROOT_DISK;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Of e2fsprogs.
const MKE2FS: &str = "mke2fs";

/// No journal, as nothing is ever recovered; nothing written ahead that reads as zeros anyway.
const OPTIONS: [&str; 9] = [
    "-qF",
    "-t",
    "ext4",
    "-O",
    "^has_journal,^resize_inode,sparse_super2",
    "-E",
    "lazy_itable_init=1,nodiscard,num_backup_sb=0",
    "-m",
    "0",
];

/// Whether this host has what makes the file system on them.
pub fn can_be_made() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(MKE2FS).is_file())
}

/// Makes one of so many bytes in the file system of a directory; it takes as much room there as is written to it. It has
/// a name there, [`ROOT_DISK`], if it is `named`.
///
/// # Errors
/// The directory's file system has no files without names or no room, or there is no `mke2fs`.
pub fn make(directory: &Path, bytes: u64, named: bool) -> Result<OpenDisk> {
    let failed = Error::path("make a disk for what the container writes in", directory);
    let made = || -> io::Result<OpenDisk> {
        let mut options = File::options();
        options.read(true).write(true).mode(0o600);
        let file = if named {
            let path = directory.join(ROOT_DISK);
            // Of a container that was not made.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => options.create_new(true).open(path)?,
            }
        } else {
            options.custom_flags(libc::O_TMPFILE).open(directory).map_err(with_remedy)?
        };
        file.set_len(bytes)?;
        format(&file, MKE2FS)?;
        Ok(OpenDisk { parts: vec![(file, bytes)] })
    };
    made().map_err(failed)
}

/// Some file systems have no files without names: overlayfs before Linux 6.1, NFS.
fn with_remedy(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EISDIR) => {
            let remedy = "no files without names there; set root.writes = \"snapshot\"";
            io::Error::other(format!("{error}: {remedy}"))
        }
        _ => error,
    }
}

fn format(file: &File, program: &str) -> io::Result<()> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut make = Command::new(program);
    // What the guest's kernel can mount is known of the program's own defaults, not of a host's.
    make.env("MKE2FS_CONFIG", "/nonexistent").args(OPTIONS).arg(path).stdin(Stdio::null());
    let done = make.output();
    let done = done.map_err(|error| {
        let remedy = "install e2fsprogs, or set root.writes = \"snapshot\"";
        io::Error::other(format!("{program}: {error}: {remedy}"))
    })?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("{program}: {}: {}", done.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_disk_has_a_file_system_and_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let disk = make(dir.path(), 1 << 30, false).unwrap();
        let [(file, bytes)] = &disk.parts[..] else { panic!("{disk:?}") };
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), *bytes), (1 << 30, 1 << 30));
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53, "ext4's superblock");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let file = tempfile::tempfile().unwrap();
        let error = format(&file, "/nowhere/mke2fs").unwrap_err().to_string();
        assert!(error.contains("e2fsprogs") && error.contains("snapshot"), "{error}");
        let error = format(&file, "false").unwrap_err().to_string();
        assert!(error.starts_with("false: exit status: 1"), "{error}");
        // No other file system that is everywhere lacks them.
        let error = make(Path::new("/proc"), 1 << 20, false).unwrap_err().chain();
        assert!(error.contains("/proc") && error.contains("root.writes"), "{error}");
        let error = make(Path::new("/nowhere"), 1 << 20, false).unwrap_err().chain();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
