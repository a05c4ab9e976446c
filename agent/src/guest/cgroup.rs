//! The cgroup of a container (version 2): its processes, stopping and killing them, its removal.

use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::LinuxResources;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup that holds those of all containers, below the root of the hierarchy.
pub const PARENT: &str = "containers";

/// Most levels below a container's cgroup that are looked at; the kernel refuses more to be made.
const MAX_DEPTH: usize = 32;

/// How long processes have to disappear when they are killed, or to stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Of the container of that (checked) id.
    pub fn of(id: &str) -> Self {
        Self(Path::new(ROOT).join(PARENT).join(id))
    }

    /// The one that holds those of all containers.
    pub fn of_all() -> Self {
        Self(Path::new(ROOT).join(PARENT))
    }

    /// Where one more process goes, by its path from this cgroup: where the first one is, if that has made a tree
    /// of it. A cgroup that hands controllers on takes no process.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn place_beside(&self, first: i32) -> io::Result<Option<PathBuf>> {
        if fs::read_to_string(self.0.join("cgroup.subtree_control"))?.trim().is_empty() {
            return Ok(None);
        }
        Ok(self.part_of(&fs::read_to_string(format!("/proc/{first}/cgroup"))?))
    }

    /// What is below this cgroup of the path in a process's `cgroup` file (cgroups(7)).
    fn part_of(&self, file: &str) -> Option<PathBuf> {
        let path = file.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let below = Path::new(ROOT).join(path).strip_prefix(&self.0).ok()?.to_owned();
        (below != Path::new("")).then_some(below)
    }

    /// Every process in it and below, in no order.
    ///
    /// # Errors
    /// When it cannot be read; a cgroup that is not there has no processes.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in tree(&self.0)? {
            match fs::read_to_string(directory.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // Removed meanwhile; or threaded, and then its processes are listed above it.
                Err(e) if is_gone(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Kills every process in it and below, those being forked included.
    ///
    /// # Errors
    /// When the kernel refuses; a cgroup that is not there is no error.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.0.join("cgroup.kill"), "1") {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Kills what is in it, waits until it is empty, removes it. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] when processes do not die; what `rmdir` says.
    pub fn remove(&self) -> io::Result<()> {
        self.kill()?;
        self.wait_until_empty()?;
        for directory in tree(&self.0)?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Stops every process in it and below, or lets them go on; returns when that has happened. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] when one does not stop; they go on then.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let set =
            |frozen: bool| fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" });
        set(frozen)?;
        let reached = self.wait_for(if frozen { "frozen 1" } else { "frozen 0" });
        if reached.is_err() && frozen {
            set(false)?;
        }
        reached
    }

    /// Sets the limits that are named, and leaves the others.
    ///
    /// # Errors
    /// What the kernel refuses; those before it are set. None is where less memory is asked for than is used and the
    /// caller wants that checked.
    pub fn limit(&self, resources: &LinuxResources) -> io::Result<()> {
        if let Some(memory) = resources.memory()
            && memory.check_before_update() == Some(true)
        {
            let used = self.read("memory.current")?.trim().parse().unwrap_or_default();
            check_memory(memory.limit(), memory.swap(), used)?;
        }
        // The kernel takes no quota below the burst, which is set after it.
        if resources.cpu().as_ref().is_some_and(|c| c.quota().is_some() && c.burst().is_some()) {
            fs::write(self.path("cpu.max.burst"), "0")?;
        }
        let config = CgroupConfig {
            cgroup_path: Path::new("/").join(self.0.strip_prefix(ROOT).unwrap_or(&self.0)),
            systemd_cgroup: false,
            container_name: String::new(),
        };
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        let manager = create_cgroup_manager(config).map_err(io::Error::other)?;
        manager.apply(&options).map_err(io::Error::other)
    }

    /// One of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// How many of its processes the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let text = self.read("memory.events")?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.and_then(|kills| kills.parse().ok()).unwrap_or_default())
    }

    /// The text of one of its files; empty where the kernel has no such file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> io::Result<String> {
        match fs::read_to_string(self.path(file)) {
            Err(error) if is_gone(&error) => Ok(String::new()),
            other => other,
        }
    }

    /// The names of its files; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn files(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            other => other?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn wait_until_empty(&self) -> io::Result<()> {
        self.wait_for("populated 0")
    }

    /// Waits for a line in the file of its events; a cgroup that is not there waits for nothing.
    fn wait_for(&self, wanted: &str) -> io::Result<()> {
        let mut events = match File::open(self.0.join("cgroup.events")) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut text = String::new();
            events.rewind()?;
            match events.read_to_string(&mut text) {
                Err(error) if is_gone(&error) => return Ok(()),
                other => other?,
            };
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            // The kernel signals a change of the file as an exceptional condition.
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        }
    }
}

/// The directory and all below it, parents first; none when it is not there.
fn tree(root: &Path) -> io::Result<Vec<PathBuf>> {
    if !root.try_exists()? {
        return Ok(Vec::new());
    }
    let mut found = vec![root.to_owned()];
    let mut level = 0..1;
    for _ in 0..MAX_DEPTH {
        for index in level.clone() {
            let entries = match fs::read_dir(&found[index]) {
                Ok(entries) => entries,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    found.push(entry.path());
                }
            }
        }
        level = level.end..found.len();
    }
    Ok(found)
}

/// The cgroup was removed: not found, or, through an open file, no such device.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Whether memory, and memory with swap, may be limited to so many bytes, -1 for no limit, while so many are used.
fn check_memory(limit: Option<i64>, with_swap: Option<i64>, used: i64) -> io::Result<()> {
    // In runc's order and words, which callers look for.
    for (name, limit) in [("memory+swap", with_swap), ("memory", limit)] {
        if let Some(limit) = limit.filter(|limit| (1..=used).contains(limit)) {
            let text = format!("rejecting {name} limit {limit}: {used} bytes are in use");
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_memory_than_is_used_is_refused() {
        let refused = |limit, swap| check_memory(limit, swap, 1025).unwrap_err().to_string();
        for swap in [None, Some(-1), Some(4096)] {
            let said = refused(Some(1024), swap);
            assert!(said.starts_with("rejecting memory limit 1024"), "{said}");
        }
        let said = refused(Some(1024), Some(1025));
        assert!(said.starts_with("rejecting memory+swap limit 1025"), "{said}");
        for fine in [None, Some(-1), Some(0), Some(1026), Some(2000)] {
            assert!(check_memory(fine, fine, 1025).is_ok());
        }
    }

    #[test]
    fn parents_come_before_their_children() {
        let root = std::env::temp_dir().join(format!("cgroup-tree-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(root.join("a/cgroup.procs"), "3\n").unwrap();
        let found = tree(&root).unwrap();
        assert_eq!(found.len(), 5);
        for (index, path) in found.iter().enumerate().skip(1) {
            let parent = found.iter().position(|p| Some(p.as_path()) == path.parent()).unwrap();
            assert!(parent < index);
        }
        let mut pids = Cgroup(root.clone()).processes().unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [1, 2, 3]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_process_joins_the_first_one_in_its_part_of_the_tree() {
        let cgroup = Cgroup::of("c");
        let place = |path: &str| cgroup.part_of(&format!("1:name=systemd:/x\n0::{path}\n"));
        assert_eq!(place("/containers/c/init.scope"), Some("init.scope".into()));
        assert_eq!(place("/containers/c/a/b"), Some("a/b".into()));
        for elsewhere in ["/containers/c", "/containers/cc/a", "/", ""] {
            assert_eq!(place(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_empty_and_removed() {
        let cgroup = Cgroup("/nowhere/at/all".into());
        assert!(cgroup.processes().unwrap().is_empty());
        cgroup.remove().unwrap();
    }
}
