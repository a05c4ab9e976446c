//! A lab: frozen once, resumed in about a second, used until it is taken down.

mod frozen;

use crate::cache::{self, Step};
use crate::client::Client;
use crate::containerd::Version;
use crate::emulator::Emulator;
use crate::go::{FOR_PODS, NEWEST_CONTAINERD, Programs};
use crate::host::{self, Ground};
use crate::pods;
use crate::qemu::{self, Files, Start};
use crate::qmp::Qmp;
use crate::root::Root;
use anyhow::{Context, Result, bail};
use frozen::Frozen;
pub use frozen::freeze_ahead;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a lab is for, which decides what has to be made before it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To show a container: with what Debian has, as it is.
    Show,
    /// To test a change: and the newest containerd beside Debian's. Debian's QEMU has one CPU for the lab, and two
    /// labs have two between them; building another would take longer than it saves.
    Change,
    /// To test a release, and to measure: a QEMU of several CPUs that bears load.
    Release,
}

impl Purpose {
    fn emulator(self) -> Emulator {
        match self {
            Self::Show | Self::Change => Emulator::Debians,
            Self::Release => Emulator::Changed,
        }
    }

    /// Programs that the lab has besides Debian's, where each goes, and its key.
    fn programs(self) -> impl Iterator<Item = (&'static Programs, &'static str, String)> {
        let all = [(&NEWEST_CONTAINERD, Version::V2_4.bin_dir()), (&FOR_PODS, pods::BIN_DIR)];
        let all = all.into_iter().filter(move |_| self != Self::Show);
        all.filter_map(|(programs, to)| Some((programs, to, programs.key()?)))
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
        (self.pid().is_some() && client.is_alive(Duration::from_secs(30))).then_some(client)
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
                // One for a container alone lacks what tests want.
                let origin = root.dir.join(format!("{purpose:?}"));
                self.reuse_or(&origin, || self.start_on_host(&root, agent, purpose))
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
        client.wait_alive(Duration::from_secs(60)).with_context(|| self.said())?;
        put_programs(&client, purpose)?;
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
        client.wait_alive(Duration::from_secs(60)).with_context(|| self.said())?;
        client.set_clock()?; // it stood still
        eprintln!("[lab] resumed in {:.1} s", start.elapsed().as_secs_f32());
        Ok(client)
    }

    /// Boots a lab of so many CPUs whose clock counts instructions; for figures, not for tests.
    ///
    /// # Errors
    /// When it doesn't come up.
    pub fn up_counting(&self, agent: &Path, cpus: u32) -> Result<Client> {
        self.down()?;
        let frozen = Frozen::prepare(agent, Purpose::Release)?;
        let step = Step::begin("lab: boot, counting instructions", "30 s");
        let client = spawn(&frozen.files(&self.run), Start::Counting { cpus })?;
        client.wait_alive(Duration::from_secs(300)).with_context(|| self.said())?;
        client.set_clock()?;
        keep_off_the_disk(&client)?;
        start_services(&client)?;
        step.end();
        Ok(client)
    }

    /// Gives a lab that is up one more disk, which is only read; it has it already when this was done before.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn attach(&self, disk: &Path) -> Result<()> {
        let there = self.run.join("attached");
        if there.exists() {
            return Ok(());
        }
        if self.run.join("port").exists() {
            let mut qmp = Qmp::connect(&qemu::monitor(&self.run), Duration::from_secs(10))?;
            qmp.plug(disk, qemu::SLOT)?;
        } else {
            // The lab on the host's kernel sees this folder.
            std::fs::copy(disk, self.run.join("programs.img"))?;
        }
        Ok(std::fs::write(there, "")?)
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

fn put_programs(client: &Client, purpose: Purpose) -> Result<()> {
    for (programs, to, key) in purpose.programs() {
        let bin = programs.prepare(&key)?;
        client.put(&[(&bin, Path::new(to))])?;
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
