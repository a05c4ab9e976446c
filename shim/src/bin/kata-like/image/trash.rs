//! Removing directory trees of any depth and shape.

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A directory that things are moved to in order to be removed.
///
/// Moving takes one step, whatever is moved. Emptying goes neither deep nor along paths: each directory
/// within another is moved up before it is emptied.
pub(crate) struct Trash {
    directory: OwnedFd,
    next: u64,
}

impl Trash {
    /// Uses an empty directory on the same file system as what will be removed.
    pub(crate) fn new(directory: OwnedFd) -> Self {
        Self { directory, next: 0 }
    }

    /// Moves a file or directory here. `false` if there is none.
    pub(crate) fn take(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let new_name = self.next.to_string();
        self.next += 1;
        match renameat(parent, name, &self.directory, new_name) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot remove {}", name.to_string_lossy())),
        }
    }

    /// Removes all that was moved here.
    pub(crate) fn empty(&mut self) -> Result<()> {
        loop {
            let names = entries(self.directory.as_fd())?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                self.remove(&name).context("cannot empty the trash")?;
            }
        }
    }

    fn remove(&mut self, name: &CStr) -> Result<()> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            result => return Ok(result?),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.directory, name, flags, Mode::empty())?;
        for child in entries(directory.as_fd())? {
            match unlinkat(&directory, &*child, AtFlags::empty()) {
                Err(Errno::ISDIR) => drop(self.take(directory.as_fd(), &child)?),
                result => result?,
            }
        }
        Ok(unlinkat(&self.directory, name, AtFlags::REMOVEDIR)?)
    }
}

/// The names in a directory, without the two that every directory has.
pub(super) fn entries(directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_deep_tree_with_links_out_of_it_is_removed_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (trash, kept) = (scratch.path().join("trash"), scratch.path().join("kept"));
        fs::create_dir(&trash).unwrap();
        fs::write(&kept, "").unwrap();
        let tree = scratch.path().join("tree");
        let mut directory = tree.clone();
        for _ in 0..300 {
            directory.push("d");
        }
        fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink(scratch.path(), directory.join("out")).unwrap();
        fs::hard_link(&kept, directory.join("kept")).unwrap();
        let mut trash = Trash::new(File::open(&trash).unwrap().into());
        let parent = File::open(scratch.path()).unwrap();
        assert!(trash.take(parent.as_fd(), c"tree").unwrap());
        assert!(!trash.take(parent.as_fd(), c"tree").unwrap());
        trash.empty().unwrap();
        assert!(kept.exists() && !tree.exists());
        assert_eq!(fs::read_dir(scratch.path().join("trash")).unwrap().count(), 0);
    }
}
