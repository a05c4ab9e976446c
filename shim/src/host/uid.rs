//! A user of its own for each sandbox's VMM, so that one that was broken into can't signal, trace or starve another's.
//!
//! Numbers are taken by files in one directory of the host, locked as long as they are in use. A lock ends with its
//! holder, however that does; the file goes with the sandbox, or with the clean-up after a crash. Until that a VMM may
//! outlive the lock: a number whose file was left is taken only when no process has it.

use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// For all sandboxes of the host, whatever their configuration.
const DIRECTORY: &str = "/run/kata-like-uids";

/// A number that nobody else has; free again when dropped.
#[derive(Debug)]
pub struct Uid {
    number: u32,
    file: PathBuf,
    _lock: File,
}

impl Uid {
    /// Takes one of `range`.
    ///
    /// # Errors
    /// All are taken, or the system's answer.
    pub fn take(range: &RangeInclusive<u32>) -> Result<Self> {
        Self::take_in(Path::new(DIRECTORY), range)
    }

    fn take_in(directory: &Path, range: &RangeInclusive<u32>) -> Result<Self> {
        let made = DirBuilder::new().mode(0o700).recursive(true).create(directory);
        made.map_err(Error::path("make the directory", directory))?;
        let (first, count) = (*range.start(), u64::from(range.end() - range.start()) + 1);
        // Not the lowest: what has just been freed, maybe by a crash, is then not the next to be used.
        let start = RandomState::new().hash_one(0) % count;
        for slot in (0..count).map(|n| (start + n) % count) {
            let number = first + slot as u32;
            let file = directory.join(number.to_string());
            let is_left = file.exists();
            let Some(lock) = lock(&file).map_err(Error::path("take a uid by", &file))? else {
                continue;
            };
            if !is_left
                || !has_process(number).map_err(Error::path("look for a uid in", "/proc"))?
            {
                return Ok(Self { number, file, _lock: lock });
            }
        }
        let text = format!("jail.uids: all {count} from {first} are taken by sandboxes");
        Err(Error::FailedPrecondition(text))
    }

    /// The uid, and the gid.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Frees a number whose holder has crashed.
    ///
    /// # Errors
    /// The system's answer.
    pub fn free(number: u32) -> io::Result<()> {
        let file = Path::new(DIRECTORY).join(number.to_string());
        if !file.exists() {
            return Ok(());
        }
        // Somebody else may have taken it since: it is that one's then.
        lock(&file)?.map_or(Ok(()), |_lock| fs::remove_file(&file))
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        // Before the lock goes, so that whoever gets the lock of a file sees whether it is still there.
        if let Err(error) = fs::remove_file(&self.file) {
            tracing::warn!("free the uid {}: {error}", self.number);
        }
    }
}

/// Whether a process of the host has the uid, as any of its four.
fn has_process(uid: u32) -> io::Result<bool> {
    let uid = uid.to_string();
    let has = |status: &str| {
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        uids.is_some_and(|uids| uids.split_ascii_whitespace().any(|one| one == uid))
    };
    for entry in fs::read_dir("/proc")? {
        // What has no such file is no process, or has ended.
        if fs::read_to_string(entry?.path().join("status")).is_ok_and(|status| has(&status)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file at this path, locked; none: it is another's.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Its last holder may have removed it meanwhile, and somebody else made another.
        if fs::metadata(path)
            .is_ok_and(|there| file.metadata().is_ok_and(|m| m.ino() == there.ino()))
        {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_shares_a_number_and_one_that_is_freed_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let range = 5000..=5002;
        let take = || Uid::take_in(dir.path(), &range);
        let mut taken: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        let mut numbers: Vec<_> = taken.iter().map(Uid::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [5000, 5001, 5002]);
        assert!(take().unwrap_err().to_string().contains("jail.uids"));
        let freed = taken.pop().map(|uid| uid.number()).unwrap();
        assert!(!dir.path().join(freed.to_string()).exists());
        assert_eq!(take().unwrap().number(), freed);
    }

    #[test]
    fn what_a_crash_leaves_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("7"), "").unwrap();
        assert_eq!(Uid::take_in(dir.path(), &(7..=7)).unwrap().number(), 7);
    }

    #[test]
    fn what_a_process_still_has_after_a_crash_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getuid().as_raw();
        let take = || Uid::take_in(dir.path(), &(own..=own));
        fs::write(dir.path().join(own.to_string()), "").unwrap();
        assert!(take().unwrap_err().to_string().contains("jail.uids"));
        assert!(dir.path().join(own.to_string()).exists(), "it is the clean-up's to remove");
    }

    #[test]
    fn of_many_at_once_each_gets_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let dir = dir.path().to_owned();
                std::thread::spawn(move || {
                    (0..50).map(|_| drop(Uid::take_in(&dir, &(5001..=5009)).unwrap())).count();
                    Uid::take_in(&dir, &(5001..=5009)).unwrap()
                })
            })
            .collect();
        let taken: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let mut numbers: Vec<_> = taken.iter().map(Uid::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), taken.len());
    }
}
