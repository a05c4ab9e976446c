//! One container's directory below `--root`: what is left of a command for the next one.
//!
//! `ROOT/ID/` is made by `mkdir`, so that of two creates one wins. Who makes or removes it holds a lock on it, so
//! that a delete waits for a create. `record.json` is there as soon as the container is.
//!
//! Who removes it then runs the poststop hooks, as with runc: at most once, whoever is killed when.

use crate::mappings::Mappings;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Hook, Hooks, Spec};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use sandbox::hooks::ContainerHooks;
use sandbox::paths::SandboxPaths;
use sandbox::persist::ProcessId;
use sandbox::replace;
use sandbox::storage::remove_tree;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long the processes of a container may take to be gone once they are killed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a container may take to be made, or removed.
pub(crate) const MAKING: Duration = Duration::from_secs(120);

/// How often a lock that somebody else has is tried.
const LOOK: Duration = Duration::from_millis(20);

/// Where a container's directory is.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
    id: String,
}

/// What is known of a container whatever became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of its config.json.
    pub(crate) oci_version: String,
    /// Absolute.
    pub(crate) bundle: PathBuf,
    /// Absolute, on the host.
    pub(crate) rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub(crate) created: String,
    /// Of its config.json.
    pub(crate) annotations: HashMap<String, String>,
    /// The `process` of its config.json: what an exec begins with.
    pub(crate) process: serde_json::Value,
    /// The hooks of its config.json that are for whoever removes it.
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
    /// Of its user namespace, if it has one.
    #[serde(default)]
    pub(crate) mappings: Mappings,
    /// The process that holds its machine, and ends with it.
    pub(crate) monitor: ProcessId,
    /// It belongs to a command in the foreground: nothing of it outlives that.
    pub(crate) foreground: bool,
}

impl Home {
    /// Names it; touches nothing.
    pub(crate) fn new(root: &Path, id: &str) -> Result<Self> {
        if id.is_empty() {
            bail!("container id cannot be empty");
        }
        protocol::ids::check(id).with_context(|| format!("invalid container ID format {id:?}"))?;
        Ok(Self { root: std::path::absolute(root)?, id: id.to_owned() })
    }

    /// Those of all containers below `root`, in the order of their ids.
    pub(crate) fn all(root: &Path) -> Vec<Self> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut homes: Vec<_> = names.filter_map(|id| Self::new(root, &id).ok()).collect();
        homes.sort_by(|a, b| a.id.cmp(&b.id));
        homes
    }

    /// The container's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// The place of its sandbox.
    pub(crate) fn sandbox(&self) -> Result<SandboxPaths> {
        Ok(SandboxPaths::new(&self.root, &self.id, "sandbox")?)
    }

    /// Takes the id.
    pub(crate) fn reserve(self) -> Result<Reservation> {
        loop {
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&self.root);
            made.with_context(|| format!("cannot make the directory {}", self.root.display()))?;
            match DirBuilder::new().mode(0o700).create(self.path()) {
                Ok(()) => break,
                // The last container has just taken the root with it.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    bail!("container with given ID already exists")
                }
                Err(error) => return Err(error).with_context(|| self.path().display().to_string()),
            }
        }
        let lock = self.lock(PATIENCE)?;
        let poststop = ContainerHooks::default();
        Ok(Reservation { home: self, poststop, left: false, _lock: lock })
    }

    /// Waits until nobody makes or removes the container.
    pub(crate) fn lock(&self, patience: Duration) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = openat(CWD, self.path(), flags, Mode::empty()).map_err(|_| does_not_exist())?;
        let end = Instant::now() + patience;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.is_at(&lock) => return Ok(lock),
                // Who had the lock has removed it.
                Ok(()) => return Err(does_not_exist()),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LOOK),
                Err(Errno::WOULDBLOCK) => bail!("container {} is being made or removed", self.id),
                Err(error) => return Err(error).context("lock the container's directory"),
            }
        }
    }

    /// Whether the directory is the one that its path leads to, not one that was removed or replaced.
    fn is_at(&self, directory: &OwnedFd) -> bool {
        let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let opened = rustix::fs::fstat(directory).map(place);
        opened.is_ok() && opened == rustix::fs::stat(self.path()).map(place)
    }

    /// What is known of the container.
    pub(crate) fn load(&self) -> Result<Record> {
        let path = self.path().join("record.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(does_not_exist()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Removes the directory.
    pub(crate) fn remove_dir(&self) -> Result<()> {
        let path = self.path();
        remove_tree(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        // Another is the caller's. Fails as it should while there are others.
        if self.root == Path::new(crate::DEFAULT_ROOT) {
            let _ = fs::remove_dir(&self.root);
        }
        Ok(())
    }
}

impl Record {
    /// What is to be run when the container `id` has been removed.
    pub(crate) fn hooks(self, id: &str) -> ContainerHooks {
        poststop(id, self.bundle, self.annotations, self.poststop)
    }
}

/// Hooks that run when a container is gone, with what they are told of it.
fn poststop(
    id: &str,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
    list: Vec<Hook>,
) -> ContainerHooks {
    let mut hooks = Hooks::default();
    hooks.set_poststop(Some(list));
    ContainerHooks { hooks, id: id.to_owned(), pid: 0, bundle, annotations, noted: false }
}

/// The time as Go prints it: RFC 3339, UTC, without the zeros at the end of a fraction.
fn now() -> String {
    short(&humantime::format_rfc3339_nanos(SystemTime::now()).to_string())
}

fn short(time: &str) -> String {
    format!("{}Z", time.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.'))
}

/// As runc says it, which scripts look for.
fn does_not_exist() -> anyhow::Error {
    anyhow::anyhow!("container does not exist")
}

/// An id that is taken, and free again when this is dropped unless [`Reservation::leave`] comes first.
pub(crate) struct Reservation {
    home: Home,
    /// For whoever removes the container.
    poststop: ContainerHooks,
    left: bool,
    _lock: OwnedFd,
}

impl Reservation {
    /// Whose it is.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Takes from a spec the hooks that are for whoever removes its container: the sandbox is not to run them.
    pub(crate) fn take_poststop(&mut self, spec: &mut Spec, bundle: &Path) {
        let Some(hooks) = spec.hooks_mut() else { return };
        let list = hooks.poststop().clone().unwrap_or_default();
        hooks.set_poststop(None);
        let annotations = spec.annotations().clone().unwrap_or_default();
        self.poststop = poststop(self.home.id(), bundle.to_owned(), annotations, list);
    }

    /// Removes the container's directory, and runs the hooks that are left to run then.
    pub(crate) async fn give_up(mut self) {
        self.left = true;
        match self.home.remove_dir() {
            Ok(()) => self.poststop.gone().await,
            // A delete may find it still, and runs them.
            Err(error) => tracing::warn!("{error:#}"),
        }
    }

    /// Records a container that exists from here on.
    pub(crate) fn record(&self, spec: &Spec, bundle: PathBuf, foreground: bool) -> Result<()> {
        let root = spec.root().as_ref().map(|root| root.path().clone());
        let record = Record {
            oci_version: spec.version().clone(),
            bundle,
            rootfs: root.unwrap_or_default(),
            created: now(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            process: serde_json::to_value(spec.process())?,
            poststop: self.poststop.hooks.poststop().clone().unwrap_or_default(),
            mappings: Mappings::of(spec),
            monitor: ProcessId::own()?,
            foreground,
        };
        let path = self.home.path().join("record.json");
        replace(&path, &serde_json::to_vec(&record)?).with_context(|| path.display().to_string())
    }

    /// Leaves the container to later commands.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.left
            && let Err(error) = self.home.remove_dir()
        {
            tracing::warn!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::SpecBuilder;

    fn spec() -> Spec {
        SpecBuilder::default().build().unwrap()
    }

    #[test]
    fn an_id_is_taken_once_and_free_again_after_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let reserved = home.clone().reserve().unwrap();
        let error = home.clone().reserve().err().unwrap().to_string();
        assert!(error.contains("already exists"), "{error}");
        assert_eq!(home.load().unwrap_err().to_string(), "container does not exist");
        drop(reserved);
        let reserved = home.clone().reserve().unwrap();
        reserved.record(&spec(), "/b".into(), false).unwrap();
        reserved.leave();
        assert_eq!(home.load().unwrap().bundle, Path::new("/b"));
        assert_eq!(Home::all(root.path()).len(), 1);
    }

    #[test]
    fn of_many_who_want_one_id_one_gets_it() {
        let root = tempfile::tempdir().unwrap();
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let home = Home::new(root.path(), "c1").unwrap();
                std::thread::spawn(move || home.reserve().map(Reservation::leave).is_ok())
            })
            .collect();
        assert_eq!(threads.into_iter().filter_map(|t| t.join().ok()).filter(|won| *won).count(), 1);
    }

    #[test]
    fn a_time_is_printed_as_go_prints_it() {
        assert_eq!(short("2026-11-28T10:20:30.120000000Z"), "2026-11-28T10:20:30.12Z");
        assert_eq!(short("2026-11-28T10:20:30.000000000Z"), "2026-11-28T10:20:30Z");
    }

    #[test]
    fn who_waits_for_what_is_removed_does_not_get_what_follows() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let first = home.clone().reserve().unwrap();
        let waiting = std::thread::spawn({
            let home = home.clone();
            move || home.lock(MAKING).map(drop)
        });
        // Until it has the directory open, as the first has.
        let directory = home.path().canonicalize().unwrap();
        let opened = |fd: std::io::Result<fs::DirEntry>| {
            fs::read_link(fd.unwrap().path()).is_ok_and(|to| to == directory)
        };
        while fs::read_dir("/proc/self/fd").unwrap().map(opened).filter(|is| *is).count() < 2 {
            assert!(!waiting.is_finished(), "it does not wait");
            std::thread::yield_now();
        }
        drop(first);
        let next = home.clone().reserve();
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "container does not exist");
        assert!(next.is_ok() && home.path().exists());
    }

    #[test]
    fn who_makes_a_container_is_waited_for_and_no_longer_than_asked() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let reserved = home.clone().reserve().unwrap();
        let error = home.lock(Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("being made or removed"), "{error}");
        let waiting = std::thread::spawn({
            let home = home.clone();
            move || home.lock(MAKING).is_ok()
        });
        std::thread::sleep(Duration::from_millis(50));
        reserved.leave();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn ids_that_leave_the_root_are_refused() {
        for id in ["", "..", "a/b"] {
            assert!(Home::new(Path::new("/run/x"), id).is_err());
        }
    }
}
