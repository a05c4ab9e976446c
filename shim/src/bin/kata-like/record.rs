//! One container's directory below `--root`: what is left of a command for the next one.
//!
//! `ROOT/ID/` is made by `mkdir`, so that of two creates one wins. Who makes or removes it holds a lock on it, so
//! that a delete waits for a create. `record.json` is there as soon as the container is.
//!
//! Who removes it then runs the poststop hooks, as with runc: at most once, whoever is killed when.

use crate::monitor::call;
use crate::users::Mappings;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Hook, Hooks, Spec};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use sandbox::hooks::ContainerHooks;
use sandbox::paths::SandboxPaths;
use sandbox::persist::{self, ProcessId, SandboxState};
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
const PATIENCE: Duration = Duration::from_secs(10);

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

    /// Removes a container whose end has been seen to, or asked for by a kill: waits for its processes, and
    /// kills those that stay; by force also a monitor that answers. Then come its poststop hooks.
    pub(crate) fn remove(&self, force: bool) -> Result<()> {
        // Before the lock: one in the foreground has it as long as it lives.
        if let Ok(record) = self.load()
            && !self.wait_for_monitor(&record, force, PATIENCE)
            // If not, it has removed the container itself, and runs the hooks.
            && self.load().is_ok_and(|now| now.monitor == record.monitor)
        {
            self.end(record.monitor)?;
        }
        let _lock = self.lock(MAKING)?;
        let record = self.load();
        persist::clean_up(&self.sandbox()?, PATIENCE)?;
        self.remove_dir()?;
        if let Ok(record) = record
            && !record.poststop.is_empty()
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(record.hooks(&self.id).gone());
            // A thread may be in a system call on a file that hangs.
            runtime.shutdown_background();
        }
        Ok(())
    }

    /// Waits for the monitor's end; without force as long as it answers, for it may have output to hand over to a
    /// slow reader. Whether it has ended.
    fn wait_for_monitor(&self, record: &Record, force: bool, patience: Duration) -> bool {
        while !record.monitor.wait(patience) {
            if force || call::status(self, record).is_err() {
                return false;
            }
        }
        true
    }

    /// Ends by force who makes a container, of which there is no record yet, for longer than it may take.
    pub(crate) fn end_making(&self) -> Result<()> {
        match SandboxState::read(&self.sandbox()?) {
            Ok(Some(state)) if self.lock(PATIENCE).is_err() => self.end(state.owner),
            _ => Ok(()),
        }
    }

    /// Ends a process of the container's by force.
    pub(crate) fn end(&self, process: ProcessId) -> Result<()> {
        if !process.kill(PATIENCE) {
            bail!("process {} of container {} does not end", process.pid, self.id);
        }
        Ok(())
    }

    /// Whether nobody will ever end it: it belonged to a command that was killed before it could. One with hooks
    /// to be run is left to a delete, as with runc: they may take for ever.
    pub(crate) fn is_abandoned(&self) -> bool {
        let Ok(paths) = self.sandbox() else { return false };
        match self.load() {
            Ok(record) => {
                record.foreground && record.poststop.is_empty() && !record.monitor.lives()
            }
            Err(_) => matches!(SandboxState::read(&paths), Ok(Some(state)) if !state.owner.lives()),
        }
    }

    fn remove_dir(&self) -> Result<()> {
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
    fn hooks(self, id: &str) -> ContainerHooks {
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
    fn what_a_crashed_create_left_can_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        fs::create_dir(home.path()).unwrap();
        home.remove(false).unwrap();
        assert!(!home.path().exists() && root.path().exists(), "the root is the caller's");
        assert_eq!(home.remove(false).unwrap_err().to_string(), "container does not exist");
    }

    #[test]
    fn only_force_ends_a_monitor_that_answers() {
        use crate::monitor::call::{Answer, Status};
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let reserved = home.clone().reserve().unwrap();
        reserved.record(&spec(), "/b".into(), false).unwrap();
        reserved.leave();
        let mut record = home.load().unwrap();
        let mut child = std::process::Command::new("sleep").arg("2").spawn().unwrap();
        record.monitor = ProcessId::of(child.id() as i32).unwrap();
        call::tests::always_answering(&home, Answer::Status(Status::Stopped));
        let short = Duration::from_millis(100);
        assert!(!home.wait_for_monitor(&record, true, short));
        assert!(record.monitor.lives());
        assert!(home.wait_for_monitor(&record, false, short));
        assert!(child.wait().unwrap().success(), "it ended by itself");
    }

    /// A container whose poststop hook adds a line to a file, after a look for the container.
    fn with_hook(root: &Path, home: &Home) -> (Reservation, Spec, PathBuf) {
        let said = root.join("said");
        let script = format!("(cat; ls -d {} 2>&1) >> {}", home.path().display(), said.display());
        let hooks = serde_json::json!({"poststop":
            [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]});
        let mut spec = spec();
        spec.set_hooks(serde_json::from_value(hooks).unwrap());
        spec.set_annotations(Some([("a".to_owned(), "b".to_owned())].into()));
        let mut reserved = home.clone().reserve().unwrap();
        reserved.take_poststop(&mut spec, Path::new("/b"));
        (reserved, spec, said)
    }

    /// Ran once, told of the container, which was gone.
    fn assert_ran_once(said: &Path) {
        let said = fs::read_to_string(said).unwrap_or_default();
        let (state, looked) = said.split_once('}').unwrap_or_default();
        let told = [r#""status":"stopped""#, r#""id":"c1""#, r#""bundle":"/b""#, r#""a":"b""#];
        assert!(told.iter().all(|member| state.contains(member)), "{said}");
        assert_eq!(looked.matches("No such file").count(), 1, "{said}");
        assert_eq!(said.matches("ociVersion").count(), 1, "{said}");
    }

    #[test]
    fn one_of_those_who_remove_a_container_runs_its_poststop_hooks() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, spec, said) = with_hook(root.path(), &home);
        assert_eq!(*spec.hooks().as_ref().unwrap().poststop(), None, "the sandbox has none");
        reserved.record(&spec, "/b".into(), false).unwrap();
        let mut record = home.load().unwrap();
        reserved.leave();
        // Its monitor has crashed.
        record.monitor.start += 1;
        fs::write(home.path().join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        let removes: Vec<_> = (0..8)
            .map(|_| {
                let home = home.clone();
                std::thread::spawn(move || home.remove(false).is_ok())
            })
            .collect();
        assert_eq!(
            removes.into_iter().filter_map(|t| t.join().ok()).filter(|done| *done).count(),
            1
        );
        assert_ran_once(&said);
    }

    #[tokio::test]
    async fn poststop_hooks_of_a_container_that_is_given_up_run_as_well() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, ..) = with_hook(root.path(), &home);
        reserved.give_up().await;
        assert_ran_once(&root.path().join("said"));
    }

    #[test]
    fn what_has_hooks_is_left_to_a_delete() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        let (reserved, spec, _said) = with_hook(root.path(), &home);
        reserved.record(&spec, "/b".into(), true).unwrap();
        reserved.leave();
        let abandoned = |poststop: Vec<Hook>| {
            let mut record = home.load().unwrap();
            record.monitor.start += 1;
            record.poststop = poststop;
            fs::write(home.path().join("record.json"), serde_json::to_vec(&record).unwrap())
                .unwrap();
            home.is_abandoned()
        };
        assert!(!abandoned(home.load().unwrap().poststop));
        assert!(abandoned(Vec::new()));
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
        std::thread::sleep(Duration::from_millis(50));
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
