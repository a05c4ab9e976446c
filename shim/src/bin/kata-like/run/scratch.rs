//! The directory of one run: the image's unpacked files, and nothing after the run.

use crate::image::{Root, Trash};
use anyhow::{Context, Result};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, mkdirat, openat};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// On a disk, since images are large, and `/run` and `/tmp` may be memory.
const BASE: &str = "/var/lib/kata-like/run";

const ROOTFS: &str = "rootfs";
const TRASH: &str = "trash";

/// A directory `BASE/ID`, locked for as long as its process lives.
pub(super) struct Scratch {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Scratch {
    /// Makes it.
    pub(super) fn new(id: &str) -> Result<Self> {
        Self::beneath(Path::new(BASE), id)
    }

    fn beneath(base: &Path, id: &str) -> Result<Self> {
        let _guard = lock_base(base)?;
        let path = base.join(id);
        make(&path)?;
        for name in [ROOTFS, TRASH] {
            make(&path.join(name))?;
        }
        let lock = open_directory(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| path.display().to_string())?;
        Ok(Self { path, _lock: lock })
    }

    /// Where the image's files go.
    pub(super) fn rootfs(&self) -> PathBuf {
        self.path.join(ROOTFS)
    }

    /// The root to unpack to, and where to put what layers remove.
    pub(super) fn open(&self) -> Result<(Root, Trash)> {
        let trash = open_directory(&self.path.join(TRASH))?;
        Ok((Root::open(&self.rootfs())?, Trash::new(trash)))
    }

    /// Removes it and all that is in it.
    pub(super) fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes the directories of runs that were killed.
pub(super) fn remove_abandoned() -> Result<()> {
    remove_abandoned_beneath(Path::new(BASE))
}

fn remove_abandoned_beneath(base: &Path) -> Result<()> {
    if !base.exists() {
        return Ok(());
    }
    let _guard = lock_base(base)?;
    for entry in fs::read_dir(base).with_context(|| base.display().to_string())? {
        let path = entry?.path();
        let directory = open_directory(&path)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => remove(&path)?,
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Between the making and the locking of a directory nobody may take it for abandoned.
fn lock_base(base: &Path) -> Result<File> {
    let named = || base.display().to_string();
    DirBuilder::new().mode(0o700).recursive(true).create(base).with_context(named)?;
    let directory = File::open(base).with_context(named)?;
    flock(&directory, FlockOperation::LockExclusive).with_context(named)?;
    Ok(directory)
}

fn make(path: &Path) -> Result<()> {
    mkdirat(CWD, path, Mode::from_raw_mode(0o700))
        .with_context(|| format!("cannot make {}", path.display()))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| path.display().to_string())
}

fn remove(path: &Path) -> Result<()> {
    let named = || format!("cannot remove {}", path.display());
    let trash_path = path.join(TRASH);
    match make(&trash_path) {
        Ok(()) => {}
        Err(e) if trash_path.is_dir() => drop(e),
        Err(e) => return Err(e),
    }
    let mut trash = Trash::new(open_directory(&trash_path)?);
    // What a run that was killed has left there may have the names that are used next.
    trash.empty().with_context(named)?;
    let directory = open_directory(path)?;
    trash.take(directory.as_fd(), c"rootfs").with_context(named)?;
    trash.empty().with_context(named)?;
    fs::remove_dir(&trash_path).with_context(named)?;
    fs::remove_dir(path).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_leaves_nothing_and_a_killed_one_is_cleaned_up_by_the_next() {
        let base = tempfile::tempdir().unwrap();
        let live = Scratch::beneath(base.path(), "live").unwrap();
        let killed = Scratch::beneath(base.path(), "killed").unwrap();
        for scratch in [&live, &killed] {
            fs::create_dir_all(scratch.rootfs().join("a/b")).unwrap();
        }
        assert!(Scratch::beneath(base.path(), "live").is_err());
        drop(killed);
        remove_abandoned_beneath(base.path()).unwrap();
        assert!(!base.path().join("killed").exists());
        assert!(live.rootfs().join("a/b").exists());
        live.remove().unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
