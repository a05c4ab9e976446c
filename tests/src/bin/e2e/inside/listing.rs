//! A line for each file: all that a program can know of it, but for its time of last access.

use anyhow::{Context as _, Result};
use nix::libc;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{DirEntry, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How much of a file is looked at.
const READ: u64 = 1 << 16;

/// Of a directory with more entries than these each [`NTH`] is looked at, of the others only what the directory
/// says: to look at a file takes a guest in the lab some milliseconds.
const FEW: usize = 32;
const NTH: usize = 128;

/// Lists what is below a directory and in its file system.
pub fn print(root: &Path) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut names = HashMap::new();
    let device = root.symlink_metadata()?.dev();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().with_context(|| path.display().to_string())?;
        // Files of an overlay's may have a number of their layer's.
        if meta.is_dir() && meta.dev() != device {
            continue;
        }
        let told = line(&path, &meta, &mut names).with_context(|| path.display().to_string())?;
        writeln!(out, "{} {told}", path.as_os_str().as_bytes().escape_ascii())?;
        if !meta.is_dir() {
            continue;
        }
        let mut children = path.read_dir()?.collect::<io::Result<Vec<_>>>()?;
        children.sort_unstable_by_key(DirEntry::file_name);
        let all = children.len() <= FEW;
        for (n, child) in children.into_iter().enumerate().rev() {
            let kind = child.file_type()?;
            if all || kind.is_dir() || n.is_multiple_of(NTH) {
                left.push(child.path());
            } else {
                writeln!(out, "{} {kind:?}", child.path().as_os_str().as_bytes().escape_ascii())?;
            }
        }
    }
    Ok(out.flush()?)
}

fn line(path: &Path, meta: &Metadata, names: &mut HashMap<u64, PathBuf>) -> Result<String> {
    let (mode, uid, gid, links) = (meta.mode(), meta.uid(), meta.gid(), meta.nlink());
    let (size, blocks, rdev) = (meta.size(), meta.blocks(), meta.rdev());
    let (modified, changed) = (meta.mtime(), meta.ctime());
    let (modified_ns, changed_ns) = (meta.mtime_nsec(), meta.ctime_nsec());
    let mut told = format!(
        "mode {mode:o} owner {uid}:{gid} links {links} size {size} blocks {blocks} device {rdev:#x} \
         modified {modified}+{modified_ns} changed {changed}+{changed_ns}"
    );
    for (name, value) in attributes(path)? {
        told += &format!(" {}={}", name.escape_ascii(), digest(&value));
    }
    if meta.is_file() {
        let mut file = File::open(path)?;
        let mut content = Vec::new();
        (&mut file).take(READ).read_to_end(&mut content)?;
        told += &format!(" content {}", digest(&content));
        if blocks * 512 < size {
            told += &format!(" data {:?}", data(&file));
        }
    } else if meta.is_symlink() {
        told += &format!(" -> {}", path.read_link()?.as_os_str().as_bytes().escape_ascii());
    } else if meta.file_type().is_char_device() && rdev == libc::makedev(1, 5) {
        File::open(path)?.read_exact(&mut [0; 4])?;
        told += " opened";
    }
    if !meta.is_dir() && links > 1 {
        let first = names.entry(meta.ino()).or_insert_with(|| path.to_owned());
        told += &format!(" is {}", first.display());
    }
    Ok(told)
}

fn digest(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("{}:{:x}", content.len(), hasher.finish())
}

/// Where a file with holes has data.
fn data(file: &File) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    let mut end = 0;
    // SAFETY: a system call that touches no memory.
    let seek = |from, whence| unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    loop {
        let start = seek(end, libc::SEEK_DATA);
        if start < 0 {
            return found;
        }
        end = seek(start, libc::SEEK_HOLE);
        found.push((start, end));
    }
}

/// The extended attributes, by name.
fn attributes(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let path = path.as_ptr();
    let mut buffer = vec![0_u8; 1 << 16];
    let taken = |length: isize, buffer: &[u8]| -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        Ok(buffer[..length].to_vec())
    };
    // SAFETY: the path ends with a zero, and the buffer is as long as it is said to be.
    let length = unsafe { libc::llistxattr(path, buffer.as_mut_ptr().cast(), buffer.len()) };
    let list = taken(length, &buffer)?;
    let mut all = Vec::new();
    for name in list.split_inclusive(|byte| *byte == 0) {
        let place = buffer.as_mut_ptr().cast();
        // SAFETY: as above; the name ends with a zero, too.
        let length = unsafe { libc::lgetxattr(path, name.as_ptr().cast(), place, buffer.len()) };
        let value = taken(length, &buffer).with_context(|| name.escape_ascii().to_string())?;
        all.push((name[..name.len() - 1].to_vec(), value));
    }
    all.sort_unstable();
    Ok(all)
}
