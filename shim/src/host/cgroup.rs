//! The host's cgroup of a sandbox: the one for all of its own processes (owner, VMM, file server), at the
//! `linux.cgroupsPath` of its first container, where engines look for what a container takes of the host.
//!
//! The others are born there: every page of theirs is counted. The owner moves in when they run, since whoever moves
//! waits for a grace period of the kernel's. The file server is born in one below it, whose processes can open no
//! device: what a guest asks of it must not be one, also where the host mounts something later.
//! Only version 2 of cgroups is known. A container's own cgroup, and those of a sandbox's other containers, are in
//! the guest, with what of `linux.resources` is not named in [`Limits`].

mod bounds;
mod limits;

use crate::error::{Error, Result};
pub use bounds::Bounds;
use bounds::{RESERVED, WEIGHTS, without_bfq};
use libcgroups::common::{AnyCgroupManager, CgroupManager, ControllerOpt, DEFAULT_CGROUP_ROOT};
use libcgroups::systemd;
use libcgroups::v2::manager::Manager;
pub use limits::{Bandwidth, Limits, weight};
use limits::{Named, as_files, as_resources};
use oci_spec::runtime::Spec;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

mod scope;

/// The cgroup of the file server, below its sandbox's.
const FILE_SERVER: &str = "file-server";

/// Where a sandbox's processes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// A path below the root of the host's cgroups; a relative one is below the caller's parent, as with runc.
    Path(PathBuf),
    /// A transient scope of systemd's: `slice:prefix:name`.
    Scope(String),
}

impl Placement {
    /// For a caller that says whether systemd manages its cgroups, as runc's do. Without a path it is named `id`.
    pub fn said(path: Option<&Path>, id: &str, systemd: bool) -> Self {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        match (path, systemd) {
            (Some(path), true) => Self::Scope(path.display().to_string()),
            (None, true) => Self::Scope(format!("system.slice:kata-like:{id}")),
            (path, false) => Self::Path(path.unwrap_or(Path::new(id)).to_owned()),
        }
    }

    /// [`Self::said`] for a spec.
    pub fn of(spec: &Spec, id: &str, systemd: bool) -> Self {
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        Self::said(path, id, systemd)
    }

    /// For a caller that does not say: the form of the path tells, as containerd's CRI makes it. Where no systemd runs
    /// such a path is one as any other, as with runc when it isn't told of systemd.
    pub fn told_by(path: &Path) -> Self {
        Self::formed(path, systemd::booted())
    }

    fn formed(path: &Path, has_systemd: bool) -> Self {
        let text = path.to_string_lossy();
        let slice = text.split(':').next().unwrap_or_default();
        let is_scope = text.matches(':').count() == 2 && slice.strip_suffix(".slice").is_some();
        let is_scope = is_scope && has_systemd;
        if is_scope { Self::Scope(text.into_owned()) } else { Self::Path(path.to_owned()) }
    }
}

/// What a clean-up after a crash needs to know of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Absolute, on the host.
    pub directory: PathBuf,
    /// The scope of systemd's that it is.
    #[serde(default)]
    pub scope: Option<String>,
}

/// The attribute of a cgroup that was made so that sandboxes' could be below it: the last of them removes it.
const MARK: &str = "trusted.kata-like";

impl Made {
    /// Removes it, if nobody is in it any more, and those above it that were made for sandboxes and that nobody uses;
    /// that it isn't there is no error. Blocks, for half a second where somebody does not leave.
    ///
    /// # Errors
    /// The system's or systemd's answer, as when somebody else's process or cgroup is in it.
    pub fn remove(&self) -> io::Result<()> {
        for directory in [&self.directory.join(FILE_SERVER), &self.directory] {
            match remove_when_left(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if let Some(scope) = &self.scope {
            scope::end(scope)?;
        }
        // The first that somebody uses keeps the rest.
        let mut above = marked_above(&self.directory);
        let _ = above.try_for_each(fs::remove_dir);
        Ok(())
    }
}

/// Writes to a file of a cgroup, if it has that: to make one is not permitted, which would say something else.
fn write(file: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut File::options().write(true).open(file)?, text.as_bytes())
}

/// Those that stand for containers are killed with the sandbox, but may take a moment to leave.
fn remove_when_left(directory: &Path) -> io::Result<()> {
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
    fs::remove_dir(directory)
}

/// Those above a directory that were made for sandboxes, the nearest first.
fn marked_above(directory: &Path) -> impl Iterator<Item = &Path> {
    let above = directory.ancestors().skip(1);
    above.take_while(|above| getxattr(*above, MARK, &mut [0; 1]).is_ok())
}

/// Marks what was made above a sandbox's cgroup.
fn mark(above: &[PathBuf]) {
    for above in above {
        if let Err(error) = setxattr(above, MARK, b"1", XattrFlags::empty()) {
            tracing::debug!("{}: {error}: it will stay", above.display());
        }
    }
}

/// Those of a directory and its ancestors that are not there, the directory first.
fn missing(directory: &Path) -> Vec<PathBuf> {
    directory.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect()
}

/// Where this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum This {
    /// Where it came from.
    Before,
    Inside,
    /// Out again, for good.
    Left,
}

/// A sandbox's cgroup.
pub struct Cgroup {
    manager: AnyCgroupManager,
    directory: PathBuf,
    /// Where this process came from.
    before: PathBuf,
    this: Mutex<This>,
    /// The whole, or what is below one that was there.
    made: Made,
    /// It stays when this process has left.
    kept: AtomicBool,
    named: Mutex<Named>,
    /// What has been set of those.
    bounds: Mutex<Bounds>,
}

impl Cgroup {
    /// Makes it where it isn't there. systemd makes none without a process: then this one is moved into it. `None`: the
    /// host has no cgroups of version 2.
    ///
    /// # Errors
    /// It is not empty, is frozen, or can't be made; it is named.
    pub fn make(placement: &Placement, id: &str) -> Result<Option<Self>> {
        let root = Path::new(DEFAULT_CGROUP_ROOT);
        if !root.join("cgroup.controllers").exists() {
            tracing::warn!(
                "{}: no cgroups of version 2: limits hold in the guest only",
                root.display()
            );
            return Ok(None);
        }
        let before = own().map_err(Error::system("find this process's cgroup"))?;
        let (manager, directory, is_new, scope) = match placement {
            Placement::Path(path) => {
                let path = below_root(path, &before);
                let directory = root.join(path.strip_prefix("/").unwrap_or(&path));
                let is_new = make_directory(root, &directory)?;
                let manager = Manager::new(root.into(), path).map_err(failed(&directory))?;
                (manager.any(), directory, is_new, None)
            }
            Placement::Scope(scope) => {
                let manager = scope::around_this(scope, id)?.any();
                (manager, own_directory()?, true, Some(scope.clone()))
            }
        };
        let this = Mutex::new(match placement {
            Placement::Path(_) => This::Before,
            Placement::Scope(_) => This::Inside,
        });
        let below = directory.join(FILE_SERVER);
        let made =
            Made { directory: if is_new { directory.clone() } else { below.clone() }, scope };
        let (kept, named, bounds) = (AtomicBool::default(), Mutex::default(), Mutex::default());
        let cgroup = Self { manager, directory, before, this, made, kept, named, bounds };
        match without_devices(&below) {
            Ok(()) => Ok(Some(cgroup)),
            Err(error) => {
                if let Err(error) = cgroup.leave() {
                    tracing::warn!("cgroup: {error}");
                }
                Err(error)
            }
        }
    }

    /// What a clean-up is to remove.
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// The directories of the cgroup itself and of the one for the file server, which can open no device in there.
    ///
    /// # Errors
    /// One can't be opened, as when somebody has removed it.
    pub fn directories(&self) -> Result<[File; 2]> {
        let open = |path: PathBuf| File::open(&path).map_err(Error::path("open", path));
        Ok([open(self.directory.clone())?, open(self.directory.join(FILE_SERVER))?])
    }

    /// Moves this process into it, unless it has stepped out. Blocks.
    ///
    /// # Errors
    /// The system's answer.
    pub fn enter(&self) -> Result<()> {
        let mut this = self.this();
        if *this == This::Before {
            move_to(&self.directory).map_err(failed(&self.directory))?;
            *this = This::Inside;
        }
        Ok(())
    }

    /// Sets limits.
    ///
    /// # Errors
    /// The system's or systemd's answer.
    pub fn limit(&self, limits: &Limits) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::FailedPrecondition(format!("limits of the sandbox's cgroup: {error}"))
        };
        let named = {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            *named = named.and(limits);
            *named
        };
        let resources = match &self.manager {
            AnyCgroupManager::Systemd(_) => as_resources(limits),
            _ => as_files(limits, named),
        };
        let resources = resources.map_err(|e| failed(&e))?;
        let options = ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        // The kernel takes no quota below the burst, nor a burst above the quota.
        if named.burst {
            self.set_burst(0)?;
        }
        self.manager.apply(&options).map_err(|e| failed(&e))?;
        if limits.cpu.burst > 0 {
            self.set_burst(limits.cpu.burst)?;
        }
        self.set_bounds(&limits.bounds)
    }

    fn set_bounds(&self, bounds: &Bounds) -> Result<()> {
        let mut set = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails in the middle is taken back by the next call.
        let before = std::mem::replace(&mut *set, bounds.clone());
        let is_scope = self.made.scope.is_some();
        for (name, text) in bounds.files(&before) {
            // Properties of the scope.
            if is_scope && name.starts_with("cpuset.") {
                continue;
            }
            let file = self.directory.join(&name);
            match write(&file, &text) {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && name.ends_with(RESERVED) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == WEIGHTS => {
                    self.weigh_without_bfq(&text);
                }
                // systemd may have kept the controller from it.
                Err(error) if is_scope => tracing::warn!("{}: {error}", file.display()),
                outcome => outcome.map_err(|error| {
                    let (file, text) = (file.display(), text.trim());
                    Error::FailedPrecondition(format!("{file}: {text}: {error}"))
                })?,
            }
        }
        Ok(())
    }

    /// Who has no scheduler that weighs runs all the same, as on runc.
    fn weigh_without_bfq(&self, line: &str) {
        let file = self.directory.join("io.weight");
        match without_bfq(line).map(|line| write(&file, &line)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::info!("{}: {error}: the weight holds in the guest", file.display());
            }
            None => tracing::warn!("{WEIGHTS}: {line}: left out, as no disk here has BFQ"),
        }
    }

    fn set_burst(&self, microseconds: u64) -> Result<()> {
        let file = self.directory.join("cpu.max.burst");
        write(&file, &microseconds.to_string()).map_err(Error::path("write", file))
    }

    /// The most that those above it leave it.
    pub fn ceiling(&self) -> Ceiling {
        ceiling(Path::new(DEFAULT_CGROUP_ROOT), &self.directory)
    }

    /// Takes this process out for good; who is in it otherwise stays. Blocks.
    ///
    /// # Errors
    /// The system's answer.
    pub fn step_out(&self) -> io::Result<()> {
        let mut this = self.this();
        if *this == This::Inside {
            go(&self.before)?;
        }
        *this = This::Left;
        Ok(())
    }

    /// Has it stay, empty, for whoever removes what this gives. `None`: it is a scope, which ends with its last process.
    pub fn keep(&self) -> Option<Made> {
        let made = Some(self.made.clone()).filter(|made| made.scope.is_none())?;
        self.kept.store(true, Ordering::Relaxed);
        Some(made)
    }

    /// Takes this process out, and removes what it made unless that is kept.
    ///
    /// # Errors
    /// The system's answer; who is left in it is not touched.
    pub fn leave(&self) -> io::Result<()> {
        self.step_out()?;
        if self.kept.load(Ordering::Relaxed) { Ok(()) } else { self.made.remove() }
    }

    fn this(&self) -> MutexGuard<'_, This> {
        self.this.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes it with those above it, which hand the controllers down; gives whether it was not there.
fn make_directory(root: &Path, directory: &Path) -> Result<bool> {
    let mut above = missing(directory);
    let is_new = !above.is_empty();
    if is_new {
        above.remove(0);
        // The last sandbox of those may take them away before this one is in: they are made anew then.
        let nearest = above.last().map_or(directory, PathBuf::as_path).to_owned();
        above.extend(marked_above(&nearest).map(Path::to_owned));
        let make = || fs::create_dir_all(directory);
        make().or_else(|_| make()).map_err(failed(directory))?;
    } else {
        check_unused(directory)?;
    }
    hand_down(root, directory);
    mark(&above);
    Ok(is_new)
}

/// Moves this process to a cgroup, given below the root.
fn go(cgroup: &Path) -> io::Result<()> {
    let root = Path::new(DEFAULT_CGROUP_ROOT);
    // What it came from may be gone, or have got cgroups below it; the root takes everybody.
    move_to(&root.join(cgroup.strip_prefix("/").unwrap_or(cgroup))).or_else(|_| move_to(root))
}

fn move_to(directory: &Path) -> io::Result<()> {
    write(&directory.join("cgroup.procs"), &std::process::id().to_string())
}

/// The most that the cgroups above one leave it; what is none: nobody limits it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processors, rounded up.
    pub cpus: Option<u32>,
}

/// The least `memory.max` and `cpu.max` of the ancestors of a cgroup.
fn ceiling(root: &Path, directory: &Path) -> Ceiling {
    let above = || directory.ancestors().skip(1).take_while(|above| above.starts_with(root));
    let said = |above: &Path, file: &str| fs::read_to_string(above.join(file)).ok();
    // "max", or none at the root.
    let memory = |above: &Path| said(above, "memory.max")?.trim().parse().ok();
    let cpus = |above: &Path| {
        let text = said(above, "cpu.max")?;
        let mut numbers = text.split_whitespace().map(str::parse::<u32>);
        let (quota, period) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (period > 0).then(|| quota.div_ceil(period))
    };
    Ceiling { memory: above().filter_map(memory).min(), cpus: above().filter_map(cpus).min() }
}

/// Makes a cgroup whose processes can open no device.
fn without_devices(directory: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::FailedPrecondition(format!("cgroup {}: {error}", directory.display()))
    };
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&error)),
        _ => {}
    }
    let opened = File::open(directory).map_err(|e| failed(&e))?;
    jail::forbid_devices(opened).map_err(|e| failed(&e))
}

fn failed<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Error {
    let path = path.display().to_string();
    move |error| Error::FailedPrecondition(format!("cgroup {path}: {error}"))
}

/// This process's cgroup, below the root.
fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(PathBuf::from).ok_or_else(|| io::Error::other("it is in none of version 2"))
}

/// Its directory.
fn own_directory() -> Result<PathBuf> {
    let own = own().map_err(Error::system("find this process's cgroup"))?;
    Ok(Path::new(DEFAULT_CGROUP_ROOT).join(own.strip_prefix("/").unwrap_or(&own)))
}

/// A `cgroupsPath` below the root, whatever it says: `..` leads nowhere.
fn below_root(path: &Path, own: &Path) -> PathBuf {
    let base = if path.is_absolute() { Path::new("/") } else { own.parent().unwrap_or(own) };
    let mut below = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => below.push(name),
            Component::ParentDir => drop(below.pop()),
            _ => {}
        }
    }
    base.join(below.strip_prefix("/").unwrap_or(&below))
}

/// Has those above a cgroup hand the controllers down to it. Where one can't be had, that shows when a limit is set.
fn hand_down(root: &Path, directory: &Path) {
    let above = directory.ancestors().skip(1).take_while(|above| above.starts_with(root));
    // From the root down: what one does not have it can't hand down.
    for above in above.collect::<Vec<_>>().into_iter().rev() {
        let controllers = fs::read_to_string(above.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            let _ = write(&above.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

/// As runc: somebody else's processes, or a freezer that is on, would be ours as well.
fn check_unused(directory: &Path) -> Result<()> {
    let read = |name: &str| {
        let file = directory.join(name);
        fs::read_to_string(&file).map_err(Error::path("read", file))
    };
    let inside = read("cgroup.procs")?.lines().count();
    if inside > 0 {
        let text = format!(
            "container's cgroup is not empty: {inside} process(es) found in {}",
            directory.display()
        );
        return Err(Error::FailedPrecondition(text));
    }
    if read("cgroup.freeze")?.trim() == "1" {
        let text = format!("container's cgroup unexpectedly frozen: {}", directory.display());
        return Err(Error::FailedPrecondition(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
