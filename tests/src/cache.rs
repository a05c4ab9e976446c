//! Where what is expensive to make is kept, by the hash of what it is made from.

use crate::wire;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The cache's folder: `$KATA_LIKE_CACHE`, else `kata-like` in `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// When it can't be made.
pub fn dir() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = var("KATA_LIKE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("kata-like")))
        .or_else(|| Some(var("HOME")?.join(".cache/kata-like")))
        .context("set KATA_LIKE_CACHE to a folder with 15 GB of room: HOME is not set")?;
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// A short name for a set of inputs.
pub fn key(inputs: &[&[u8]]) -> String {
    let mut all = Vec::new();
    for input in inputs {
        all.extend_from_slice(&(input.len() as u64).to_le_bytes());
        all.extend_from_slice(input);
    }
    wire::hash(&all)[..12].to_owned()
}

/// Makes `dir` by `make` unless it is there. `make` gets a folder to fill, which becomes `dir` when it is
/// complete, so that an interrupted one is never taken for whole; one process at a time does it.
///
/// # Errors
/// Those of `make`, and of the file system.
pub fn once(dir: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        used(dir);
        return Ok(());
    }
    let _lock = lock(&beside(dir, "lock"))?;
    if dir.exists() {
        return Ok(());
    }
    let part = beside(dir, "part");
    remove(&part)?;
    std::fs::create_dir_all(&part)?;
    make(&part)?;
    std::fs::rename(&part, dir).with_context(|| dir.display().to_string())?;
    forget_older(dir)
}

/// How many of a kind are kept: checkouts of different age share a cache, and each needs its own.
const KEPT: usize = 4;

/// Notes that it was used, for [`forget_older`].
fn used(dir: &Path) {
    let _ = File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Forgets all but the last used of the folder's kind, which is its name up to the key: each may be gigabytes. Who still
/// has one open goes on with it.
fn forget_older(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let (Some((kind, _)), Some(parent)) = (name.rsplit_once('-'), dir.parent()) else {
        return Ok(());
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_of_kind = |(of, key): (&str, &str)| of == kind && !key.contains('.');
        // Another process may have just removed it.
        if name.rsplit_once('-').is_some_and(is_of_kind)
            && let Ok(used) = entry.metadata().and_then(|found| found.modified())
        {
            all.push((used, entry.path()));
        }
    }
    all.sort();
    let surplus = all.len().saturating_sub(KEPT);
    all.into_iter().take(surplus).try_for_each(|(_, path)| remove(&path))
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Removes a folder and all in it, if there is one.
///
/// # Errors
/// When something in it can't be removed.
pub fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Waits until this process alone holds the lock file.
///
/// # Errors
/// When the file can't be made.
pub fn lock(file: &Path) -> Result<Flock<File>> {
    let open = || File::create(file).with_context(|| file.display().to_string());
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err(_) => eprintln!("waiting for another process that holds {}", file.display()),
    }
    Flock::lock(open()?, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| file.display().to_string())
}

/// How often a step that goes on says so.
const EVERY: Duration = Duration::from_secs(30);

/// A step that takes long enough to be told about: says what is done and how long it usually takes, how far it is
/// every half minute, and when it ends.
pub struct Step {
    name: &'static str,
    start: Instant,
    told: bool,
    far: Arc<Mutex<String>>,
    /// Dropped, it ends the thread that tells how far the step is.
    _goes_on: Sender<()>,
}

impl Step {
    /// Says that the step begins.
    pub fn begin(name: &'static str, usually: &str) -> Self {
        eprintln!("[{name}] … (usually {usually})");
        Self::new(name, true)
    }

    /// Begins a step that is told about only when it takes long after all.
    pub fn begin_quick(name: &'static str) -> Self {
        Self::new(name, false)
    }

    fn new(name: &'static str, told: bool) -> Self {
        let start = Instant::now();
        let far = Arc::new(Mutex::new(String::new()));
        let (goes_on, ended) = mpsc::channel();
        let shared = Arc::clone(&far);
        std::thread::spawn(move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let far = shared.lock().unwrap_or_else(PoisonError::into_inner);
                eprintln!("[{name}] … {} s so far{far}", start.elapsed().as_secs());
            }
        });
        Self { name, start, told, far, _goes_on: goes_on }
    }

    /// How far it is: told with the time, from now on.
    pub fn is_at(&self, far: impl std::fmt::Display) {
        *self.far.lock().unwrap_or_else(PoisonError::into_inner) = format!(", {far}");
    }

    /// Says that it is done, and how long it took.
    pub fn end(self) {
        let took = self.start.elapsed();
        if self.told || took > EVERY {
            eprintln!("[{}] done in {:.1} s", self.name, took.as_secs_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_make_leaves_nothing_that_looks_whole() {
        let dir = std::env::temp_dir().join(format!("lab-cache-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let thing = dir.join("thing");
        once(&thing, |part| {
            std::fs::write(part.join("half"), "")?;
            anyhow::bail!("interrupted")
        })
        .unwrap_err();
        assert!(!thing.exists());
        once(&thing, |part| Ok(std::fs::write(part.join("whole"), "")?)).unwrap();
        once(&thing, |_| unreachable!("it is there")).unwrap();
        assert!(thing.join("whole").exists() && !thing.join("half").exists());
        remove(&dir).unwrap();
    }

    #[test]
    fn only_the_newest_of_a_kind_are_kept() {
        let dir = std::env::temp_dir().join(format!("lab-cache-kinds-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["big-1", "big-2", "big-3", "other-1", "big-4", "big-1", "big-5"] {
            once(&dir.join(name), |part| Ok(std::fs::write(part.join("file"), "")?)).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        let there: Vec<_> = ["big-1", "big-2", "big-3", "big-4", "big-5", "other-1"]
            .into_iter()
            .filter(|name| dir.join(name).exists())
            .collect();
        // The first was used again.
        assert_eq!(there, ["big-1", "big-3", "big-4", "big-5", "other-1"]);
        remove(&dir).unwrap();
    }

    #[test]
    fn keys_tell_where_one_input_ends() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
    }
}
