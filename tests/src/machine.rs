//! A lab: frozen once, resumed in about a second, used until it is taken down.

use crate::cache::{self, Step};
use crate::client::Client;
use crate::containerd::Version;
use crate::emulator::Emulator;
use crate::host::{self, Ground};
use crate::newest_containerd;
use crate::qemu::{self, Files, Start};
use crate::qmp::Qmp;
use crate::root::{Root, run};
use anyhow::{Context, Result, bail};
use kata_like_rootfs_builder::cpio::{self, Entry, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const INIT: &[u8] = include_bytes!("../lab/init");
const INITRAMFS_INIT: &[u8] = include_bytes!("../lab/initramfs-init");

/// What decides the state that is frozen: the agent in it, by its sources, so that a rebuilt but unchanged
/// agent or another compiler doesn't cost a new freeze.
const FROZEN_FROM: [&[u8]; 8] = [
    INIT,
    INITRAMFS_INIT,
    include_bytes!("wire.rs"),
    include_bytes!("containerd.rs"),
    include_bytes!("qemu.rs"),
    include_bytes!("bin/lab_agent/main.rs"),
    include_bytes!("bin/lab_agent/exec.rs"),
    include_bytes!("bin/lab_agent/kept_vms.rs"),
];

/// What a lab is for, which decides what has to be made before it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To show a container: with what Debian has, as it is.
    Show,
    /// Tests and measurements: a QEMU that bears load, and the newest containerd beside Debian's.
    Tests,
}

impl Purpose {
    fn emulator(self) -> Emulator {
        match self {
            Self::Show => Emulator::Debians,
            Self::Tests => Emulator::Changed,
        }
    }

    /// The key of the newest containerd, where the lab has it.
    fn newest_containerd(self) -> Option<String> {
        (self == Self::Tests).then(newest_containerd::key).flatten()
    }
}

/// One lab on this host, up or not; several may be up beside each other under different names.
#[derive(Debug)]
pub struct Lab {
    run: PathBuf,
}

impl Lab {
    /// The lab that `$KATA_LIKE_LAB` names, else `main`.
    ///
    /// # Errors
    /// When the cache's folder can't be made.
    pub fn named_by_environment() -> Result<Self> {
        Self::named(&std::env::var("KATA_LIKE_LAB").unwrap_or_else(|_| "main".to_owned()))
    }

    /// The labs that tests share: the one of the environment's name, and others whose names begin with it.
    ///
    /// # Errors
    /// As [`Lab::named_by_environment`].
    pub fn side_by_side(count: usize) -> Result<Vec<Self>> {
        let first = Self::named_by_environment()?;
        let name =
            first.run.file_name().context("a lab has a name")?.to_string_lossy().into_owned();
        let others = (2..=count).map(|number| Self::named(&format!("{name}-{number}")));
        let mut labs = vec![first];
        labs.extend(others.collect::<Result<Vec<_>>>()?);
        Ok(labs)
    }

    /// The lab of that name.
    ///
    /// # Errors
    /// When it can't be a file's name, or the cache's folder can't be made.
    pub fn named(name: &str) -> Result<Self> {
        if name.is_empty() || name.contains(['/', '.']) {
            bail!("a lab can't be called {name:?}: use letters, digits and dashes");
        }
        Ok(Self { run: cache::dir()?.join("run").join(name) })
    }

    /// The agent of the lab that is up.
    ///
    /// # Errors
    /// When none is.
    pub fn client(&self) -> Result<Client> {
        self.running().context("no lab is up; `cargo xtask lab up` starts one")
    }

    fn running(&self) -> Option<Client> {
        let client = match std::fs::read_to_string(self.run.join("port")) {
            Ok(port) => Client::Emulated(port.parse().ok()?),
            Err(_) => Client::Host(host::agent_socket(&self.run)),
        };
        (self.pid().is_some() && client.is_alive(Duration::from_secs(10))).then_some(client)
    }

    /// The process that the lab is, if it is alive and really ours.
    fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.run.join("pid")).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self.run.display().to_string();
        String::from_utf8_lossy(&cmdline).contains(&ours).then_some(Pid::from_raw(pid))
    }

    /// Brings the lab up: as it is, when it is up; else resumed from the frozen state, which is made if
    /// need be, or started on the host's kernel. `agent` is the lab's agent, static.
    ///
    /// # Errors
    /// When a step fails; the message says what to do.
    pub fn up(&self, agent: &Path, ground: Ground, purpose: Purpose) -> Result<Client> {
        match ground {
            Ground::Emulated => {
                let frozen = Frozen::prepare(agent, purpose)?;
                self.reuse_or(&frozen.dir, || self.resume(&frozen))
            }
            Ground::Host => {
                let root = Root::prepare()?;
                self.reuse_or(&root.dir, || self.start_on_host(&root, agent, purpose))
            }
        }
    }

    /// The lab that is up, when it was made from `origin`; else a new one by `start`.
    fn reuse_or(&self, origin: &Path, start: impl FnOnce() -> Result<Client>) -> Result<Client> {
        let note = self.run.join("origin");
        let origin = origin.display().to_string();
        if std::fs::read_to_string(&note).is_ok_and(|made_from| made_from == origin)
            && let Some(client) = self.running()
        {
            return Ok(client);
        }
        self.down()?;
        let client = start()?;
        std::fs::write(note, origin)?;
        Ok(client)
    }

    fn start_on_host(&self, root: &Root, agent: &Path, purpose: Purpose) -> Result<Client> {
        let step = Step::begin("lab: on this host's kernel", "3 s");
        host::spawn(root, &self.run, agent)?;
        let client = Client::Host(host::agent_socket(&self.run));
        client.wait_alive(Duration::from_secs(10)).with_context(|| self.said())?;
        put_newest_containerd(&client, purpose)?;
        start_services(&client)?;
        step.end();
        Ok(client)
    }

    fn resume(&self, frozen: &Frozen) -> Result<Client> {
        let start = Instant::now();
        let client = spawn(&frozen.files(&self.run), Start::Resume)?;
        let mut qmp = Qmp::connect(&qemu::monitor(&self.run), Duration::from_secs(10))
            .with_context(|| self.said())?;
        qmp.keep_memory_in_file()?;
        let state = format!("file:{}", frozen.files(&self.run).devices().display());
        qmp.call("migrate-incoming", &json!({ "uri": state }))?;
        // `cont` before the state is in would be lost.
        qmp.wait_status("query-status", "paused", Duration::from_secs(60))?;
        qmp.call("cont", &json!({}))?;
        client.wait_alive(Duration::from_secs(20)).with_context(|| self.said())?;
        client.set_clock()?; // it stood still
        eprintln!("[lab] resumed in {:.1} s", start.elapsed().as_secs_f32());
        Ok(client)
    }

    /// Boots a lab whose clock counts instructions; for figures, not for tests.
    ///
    /// # Errors
    /// When it doesn't come up.
    pub fn up_counting(&self, agent: &Path) -> Result<Client> {
        self.down()?;
        let frozen = Frozen::prepare(agent, Purpose::Tests)?;
        let step = Step::begin("lab: boot, counting instructions", "30 s");
        let client = spawn(&frozen.files(&self.run), Start::Counting)?;
        client.wait_alive(Duration::from_secs(300)).with_context(|| self.said())?;
        client.set_clock()?;
        keep_off_the_disk(&client)?;
        start_services(&client)?;
        step.end();
        Ok(client)
    }

    /// The last that QEMU said and the lab's console showed: why it is gone.
    pub fn said(&self) -> String {
        let end = |file: PathBuf| {
            let text = std::fs::read(file).unwrap_or_default();
            String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]).into_owned()
        };
        let (said, console) = (end(self.run.join("qemu.log")), end(qemu::console(&self.run)));
        format!("QEMU said: {said}\nthe lab's console: {console}")
    }

    /// The lab's console.
    pub fn console(&self) -> PathBuf {
        qemu::console(&self.run)
    }

    /// Takes the lab down, if it is up.
    ///
    /// # Errors
    /// When its process can't be ended.
    pub fn down(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            kill(pid, Signal::SIGKILL).context("end the lab")?;
            let end = Instant::now() + Duration::from_secs(10);
            while self.pid().is_some() {
                if Instant::now() > end {
                    bail!("the lab (process {pid}) does not end");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        cache::remove(&self.run)
    }
}

/// A lab saved right after it came up: memory file, disk, device state.
#[derive(Debug)]
struct Frozen {
    dir: PathBuf,
    root: Root,
    emulator: Emulator,
}

impl Frozen {
    /// The state for a purpose, made if need be.
    fn prepare(agent: &Path, purpose: Purpose) -> Result<Self> {
        let root = Root::prepare()?;
        let tests = Self::of(&root, Purpose::Tests);
        // One that is made for tests already shows a container as well.
        if purpose == Purpose::Show && tests.dir.exists() {
            return Ok(tests);
        }
        let frozen = Self::of(&root, purpose);
        let fresh = !frozen.dir.exists();
        cache::once(&frozen.dir, |part| {
            let agent = std::fs::read(agent).with_context(|| agent.display().to_string())?;
            freeze(part, &root, &agent, purpose)
        })?;
        if fresh {
            forget_older(&root.dir)?;
        }
        Ok(frozen)
    }

    fn of(root: &Root, purpose: Purpose) -> Self {
        let emulator = purpose.emulator();
        let containerd = purpose.newest_containerd().unwrap_or_default();
        let more = [emulator.key(), containerd.as_bytes()];
        let key = cache::key(&[&FROZEN_FROM[..], &more].concat());
        Self { dir: root.dir.join(format!("frozen-{key}")), root: root.clone(), emulator }
    }

    fn files<'a>(&'a self, run: &'a Path) -> Files<'a> {
        Files { root: &self.root, state: &self.dir, run, emulator: self.emulator }
    }
}

/// How many frozen states are kept: checkouts of different age share a cache, and each needs its own.
const KEPT: usize = 3;

/// Frozen states are over a gigabyte each: forgets all but the newest (labs that run keep theirs open).
fn forget_older(root: &Path) -> Result<()> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("frozen-") && path.extension().is_none() {
            states.push((path.metadata()?.modified()?, path));
        }
    }
    states.sort();
    let surplus = states.len().saturating_sub(KEPT);
    states.into_iter().take(surplus).try_for_each(|(_, path)| cache::remove(&path))
}

fn freeze(dir: &Path, root: &Root, agent: &[u8], purpose: Purpose) -> Result<()> {
    let emulator = purpose.emulator();
    let files = Files { root, state: dir, run: &dir.join("run"), emulator };
    emulator.command(root)?;
    purpose.newest_containerd().as_deref().map(newest_containerd::prepare).transpose()?;
    let step = Step::begin("lab: boot and freeze", "30 s");
    write_initramfs(&files.initramfs(), root, agent)?;
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(root.dir.join("disk.img"))
        .arg(files.disk()))?;
    let lab = Lab { run: files.run.to_owned() };
    let result = boot_and_freeze(&files, purpose).map_err(|error| error.context(lab.said()));
    lab.down()?;
    result?;
    step.end();
    Ok(())
}

fn boot_and_freeze(files: &Files<'_>, purpose: Purpose) -> Result<()> {
    let client = spawn(files, Start::Cold)?;
    client.wait_alive(Duration::from_secs(300))?; // seconds, on a machine that is not overloaded
    client.set_clock()?;
    put_newest_containerd(&client, purpose)?;
    start_services(&client)?;
    client.output(&["sync"])?;
    let mut qmp = Qmp::connect(&qemu::monitor(files.run), Duration::from_secs(10))?;
    qmp.call("stop", &json!({}))?;
    qmp.keep_memory_in_file()?;
    qmp.call("migrate", &json!({ "uri": format!("file:{}", files.devices().display()) }))?;
    qmp.wait_status("query-migrate", "completed", Duration::from_secs(60))?;
    qmp.call("quit", &json!({})).map(drop).or(Ok(())) // it may close the monitor first
}

/// Gives containerd folders in memory: while all wait for the disk, which takes its time by another clock, the
/// counted clock leaps from timer to timer.
fn keep_off_the_disk(client: &Client) -> Result<()> {
    for version in Version::ALL {
        let root = version.root();
        let (status, _, err) = client.output(&["mount", "-t", "tmpfs", "tmpfs", &root])?;
        if status != 0 {
            bail!("no folder in memory at {root}: {err}");
        }
    }
    Ok(())
}

fn put_newest_containerd(client: &Client, purpose: Purpose) -> Result<()> {
    if let Some(key) = purpose.newest_containerd() {
        let bin = newest_containerd::prepare(&key)?;
        client.put(&[(&bin, Path::new(Version::V2_4.bin_dir()))])?;
    }
    Ok(())
}

/// Starts the containerds and imports the image.
fn start_services(client: &Client) -> Result<()> {
    let (status, out, err) = client.output(&["/run/lab/lab-agent", "services"])?;
    if status != 0 {
        bail!("the lab's services did not start: {out}{err}");
    }
    Ok(())
}

fn spawn(files: &Files<'_>, start: Start) -> Result<Client> {
    std::fs::create_dir_all(files.run)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    qemu::spawn(files, start, port)?;
    std::fs::write(files.run.join("port"), port.to_string())?;
    Ok(Client::Emulated(port))
}

/// The module for the disk, busybox to mount it, and what goes along to `/run/lab`.
fn write_initramfs(file: &Path, root: &Root, agent: &[u8]) -> Result<()> {
    let source = root.dir.join("root");
    let modules = source.join("usr/lib/modules").join(root.kernel_version()?);
    let read = |path: PathBuf| std::fs::read(&path).with_context(|| path.display().to_string());
    let busybox = read(source.join("usr/bin/busybox"))?;
    let disk_driver = read(modules.join("kernel/drivers/block/virtio_blk.ko"))?;
    let mut archive = cpio::Writer::new(std::fs::File::create(file)?);
    for path in ["bin", "dev", "root", "lab"] {
        archive.append(&Entry { path, mode: 0o755, kind: Kind::Directory })?;
    }
    let files: [(&str, &[u8]); 6] = [
        ("bin/busybox", &busybox),
        ("bin/sh", &busybox),
        ("virtio_blk.ko", &disk_driver),
        ("init", INITRAMFS_INIT),
        ("lab/init", INIT),
        ("lab/lab-agent", agent),
    ];
    for (path, bytes) in files {
        archive.append(&Entry { path, mode: 0o755, kind: Kind::File(bytes) })?;
    }
    archive.finish()?;
    Ok(())
}

/// Builds and freezes the lab unless that is done; `agent` is the lab's agent, static.
///
/// # Errors
/// When a step fails.
pub fn freeze_ahead(agent: &Path, purpose: Purpose) -> Result<()> {
    Frozen::prepare(agent, purpose).map(drop)
}
