//! Nothing is left behind: what the machine holds after a test is what it held before.

use crate::command;
use crate::containerd_api as api;
use crate::context::Context;
use crate::task_api;
use anyhow::{Context as _, Result, bail};
use lab::containerd::Version;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

crate::cases!(crate::Scope::Once; catches_a_planted_leak; crate::Scope::AllOnce; catches_growing_descriptors);

/// Directories whose entries come and go with sandboxes: path, and how deep the entries lie.
const WATCHED: [(&str, usize); 20] = [
    ("/run/kata-like", 2),
    ("/run/kata-like-cli", 1),
    ("/run/kata-like-uids", 1),
    ("/var/lib/kata-like/run", 1),
    ("/run/containerd/s", 1),
    ("/run/containerd/fifo", 1),
    ("/run/containerd/io.containerd.runtime.v2.task", 2),
    ("/run/containerd-2.4/io.containerd.runtime.v2.task", 2),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 2),
    ("/var/lib/containerd-2.4/io.containerd.runtime.v2.task", 2),
    ("/run/containerd-2.4/io.containerd.sandbox.controller.v1.shim", 2),
    ("/var/lib/containerd-2.4/io.containerd.sandbox.controller.v1.shim", 2),
    ("/run/containerd/io.containerd.grpc.v1.cri", 2),
    ("/run/containerd-2.4/io.containerd.grpc.v1.cri", 2),
    ("/var/lib/containerd/io.containerd.grpc.v1.cri", 2),
    ("/var/lib/containerd-2.4/io.containerd.grpc.v1.cri", 2),
    ("/run/containerd-2.4/io.containerd.mount-manager.v1.bolt/t", 1),
    ("/dev/shm", 1),
    ("/run/netns", 1),
    ("/sys/class/net", 1),
];

/// How long what is going away may take: each of our processes has seconds to end by itself.
const SETTLE: Duration = Duration::from_secs(60);

/// What the tests before have left in place: what the next one may find.
#[derive(Default)]
pub struct Guard(Option<Holdings>);

impl Guard {
    /// Runs a test and holds what it leaves against what was there.
    pub fn run(
        &mut self,
        context: &Context,
        test: impl FnOnce(&Context) -> Result<()>,
    ) -> Result<()> {
        let before = match self.0.take() {
            Some(before) => before,
            None => Holdings::now()?,
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(context)))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the test panicked")));
        let (left, after) = before.settle(SETTLE)?;
        if !left.is_empty() {
            end_leaked(&left);
            return Err(match outcome {
                Ok(()) => anyhow::anyhow!("left behind:\n  {}", left.join("\n  ")),
                Err(error) => error.context(format!("and left behind:\n  {}", left.join("\n  "))),
            });
        }
        self.0 = Some(after);
        outcome
    }
}

/// Kills leaked processes, so that the next tests are not blamed for them.
fn end_leaked(left: &[String]) {
    let pids = left.iter().filter_map(|what| what.strip_prefix("process ")?.split(':').next());
    for pid in pids.filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Kills the shims of tests; what they started goes with them.
pub fn end_shims_of_tests() -> Result<()> {
    for (pid, line) in our_processes()? {
        if line.contains(" -id e2e-") {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// Everything that a sandbox may hold on the host, as text.
pub struct Holdings(BTreeSet<String>);

impl Holdings {
    /// What is held now.
    pub fn now() -> Result<Self> {
        let mut held = BTreeSet::new();
        processes(&mut held)?;
        mounts(&mut held)?;
        sockets(&mut held)?;
        for (root, depth) in WATCHED {
            entries(Path::new(root), depth, &mut held);
        }
        cgroups(Path::new("/sys/fs/cgroup"), &mut held);
        for version in Version::installed() {
            containerd_objects(version, &mut held)?;
        }
        Ok(Self(held))
    }

    /// What is held now and was not then, given some time to go away; and all that is held now.
    pub fn settle(&self, patience: Duration) -> Result<(Vec<String>, Self)> {
        let end = Instant::now() + patience;
        loop {
            let now = Self::now()?;
            let left: Vec<_> = now.0.difference(&self.0).cloned().collect();
            if left.is_empty() || Instant::now() >= end {
                return Ok((left, now));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Every process that is one of ours, by its name.
pub fn our_processes() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        // A zombie has no command line any more; its short name is all there is.
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let is_ours =
            |name: &str| name.contains("kata-like") || name.starts_with("containerd-shim");
        if is_ours(name) || (line.is_empty() && is_ours(comm.trim())) {
            found.push((pid, if line.is_empty() { format!("[{}]", comm.trim()) } else { line }));
        }
    }
    Ok(found)
}

fn processes(held: &mut BTreeSet<String>) -> Result<()> {
    held.extend(our_processes()?.into_iter().map(|(pid, line)| format!("process {pid}: {line}")));
    Ok(())
}

fn mounts(held: &mut BTreeSet<String>) -> Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        if point.contains("kata-like")
            || point.contains("runtime.v2.task")
            || point.contains("v1.cri")
        {
            held.insert(format!("mount {point}"));
        }
    }
    Ok(())
}

fn sockets(held: &mut BTreeSet<String>) -> Result<()> {
    for line in fs::read_to_string("/proc/net/unix")?.lines() {
        let path = line.split_whitespace().nth(7).unwrap_or_default();
        if path.contains("kata-like") || path.contains("/containerd/s/") {
            held.insert(format!("socket {path}"));
        }
    }
    Ok(())
}

fn entries(directory: &Path, depth: usize, held: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if depth > 1 {
            entries(&path, depth - 1, held);
        } else {
            held.insert(format!("entry {}", path.display()));
        }
    }
}

fn cgroups(directory: &Path, held: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            held.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), held);
        }
    }
}

fn containerd_objects(version: Version, held: &mut BTreeSet<String>) -> Result<()> {
    let on = version.name();
    let containers = api::containers(version)?.into_iter();
    held.extend(containers.map(|id| format!("containerd {on} container {id}")));
    let tasks = api::tasks(version)?.into_iter();
    held.extend(tasks.map(|(id, _)| format!("containerd {on} task {id}")));
    Ok(())
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).context("descriptors")?.count())
}

fn catches_a_planted_leak(context: &Context) -> Result<()> {
    let before = Holdings::now()?;
    let container = context.sleeper()?;
    let directory = Path::new("/run/kata-like/default/planted");
    fs::create_dir_all(directory)?;
    let listener = std::os::unix::net::UnixListener::bind(directory.join("planted.sock"))?;
    let cgroup = Path::new("/sys/fs/cgroup/planted");
    fs::create_dir(cgroup)?;
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), directory, Some("tmpfs"), flags, none)?;
    let program = Path::new("/tmp/planted-kata-like-vmm");
    fs::copy("/usr/bin/sleep", program)?;
    let mut process = std::process::Command::new(program).arg("100").spawn()?;
    let left = before.settle(Duration::from_millis(100))?.0.join("\n");
    process.kill()?;
    process.wait()?;
    fs::remove_file(program)?;
    nix::mount::umount(directory)?;
    fs::remove_dir(cgroup)?;
    drop(listener);
    fs::remove_dir_all(directory)?;
    let on = context.containerd.name();
    let known =
        ["container", "task"].map(|kind| format!("containerd {on} {kind} {}", container.id));
    container.remove()?;
    for kind in known.iter().map(String::as_str).chain([
        "entry /run/kata-like/default/planted",
        "socket /run/kata-like/default/planted/planted.sock",
        "cgroup /sys/fs/cgroup/planted",
        "mount /run/kata-like/default/planted",
        "/tmp/planted-kata-like-vmm",
    ]) {
        if !left.contains(kind) {
            bail!("the planted {kind} was not seen; seen: {left}");
        }
    }
    Ok(())
}

/// How many descriptors each process of ours has, by its program.
pub fn descriptors_of_ours() -> Result<Vec<(String, usize)>> {
    let mut all = Vec::new();
    for (pid, line) in our_processes()? {
        all.push((line.split(' ').next().unwrap_or_default().to_owned(), descriptors(pid)?));
    }
    all.sort();
    Ok(all)
}

/// A connection to a shim is a descriptor that it has meanwhile.
fn catches_growing_descriptors(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let mut seen = descriptors_of_ours()?;
    let before = seen.clone();
    let shim = task_api::connect(context, &container)?;
    let mut counts = |what: &str, is: fn(usize, usize) -> bool| {
        command::eventually(what, Duration::from_secs(20), || {
            seen = descriptors_of_ours()?;
            let sum = |all: &[(String, usize)]| all.iter().map(|(_, count)| count).sum::<usize>();
            Ok(is(sum(&seen), sum(&before)))
        })
        .with_context(|| format!("before {before:?}, then {seen:?}"))
    };
    counts("one more descriptor is seen", |now, before| now > before)?;
    drop(shim);
    counts("and gone when it is closed", |now, before| now == before)?;
    container.remove()
}
