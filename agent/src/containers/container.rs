//! One container: its state, its init process and the others that were asked for.

use crate::containers::commands::Commands;
use crate::containers::process::Process;
use crate::containers::stats;
use crate::containers::write_out::WriteOut;
use crate::error::AgentError;
use crate::guest::cgroup::Cgroup;
use crate::guest::ps;
use crate::guest::storage::Storages;
use crate::work::job::STATE_DIR;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::LinuxResources;
use protocol::agent::{ContainerStatsResponse, ContainerStatus, ProcessInfo};
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most execs of a container at once, those not yet deleted included.
const MAX_EXECS: usize = 512;

/// On which libcontainer's init process waits to be let go.
const NOTIFY_SOCKET: &str = "notify.sock";

/// A container that has an init process, living or not.
#[derive(Debug)]
pub struct Container {
    id: String,
    bundle: PathBuf,
    init: Arc<Process>,
    started: Mutex<bool>,
    paused: Mutex<bool>,
    /// Held while that is changed: who comes after one that takes long finds out what has become of it.
    pausing: Mutex<()>,
    write_out: WriteOut,
    /// `None`: being made.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    storages: Mutex<Storages>,
    commands: Commands,
    process_directories: AtomicU64,
}

impl Container {
    /// A container whose init process waits.
    pub fn new(id: String, bundle: PathBuf, init: Process, storages: Storages) -> Self {
        Self {
            id,
            bundle,
            init: Arc::new(init),
            started: Mutex::new(false),
            paused: Mutex::new(false),
            pausing: Mutex::new(()),
            write_out: WriteOut::default(),
            execs: Mutex::default(),
            storages: Mutex::new(storages),
            commands: Commands::default(),
            process_directories: AtomicU64::new(0),
        }
    }

    /// The first process.
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// Its directory in the guest.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Kills what is left when the init process has ended: the kernel does that only for a container
    /// with a pid namespace of its own.
    pub fn end_with_init(self: &Arc<Self>) {
        let mut exit = self.init.exit_cell();
        let cgroup = Cgroup::of(&self.id);
        tokio::spawn(async move {
            let _ = exit.wait_for(Option::is_some).await;
            if let Err(error) = cgroup.kill() {
                tracing::warn!(%error, "killing what is left of a container");
            }
        });
    }

    /// What `started`, `paused` and the init process's exit amount to.
    pub fn status(&self) -> ContainerStatus {
        match (self.init.exit(), *lock(&self.started)) {
            (Some(_), _) => ContainerStatus::STOPPED,
            (None, _) if *lock(&self.paused) => ContainerStatus::PAUSED,
            (None, true) => ContainerStatus::RUNNING,
            (None, false) => ContainerStatus::CREATED,
        }
    }

    /// Lets the init process go.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] unless it waits for that.
    pub fn start(&self) -> Result<(), AgentError> {
        let mut started = lock(&self.started);
        if *started || *lock(&self.paused) || self.init.exit().is_some() {
            return Err(AgentError::WrongState(format!(
                "container {:?} is not in state created",
                self.id
            )));
        }
        let directory = Path::new(STATE_DIR).join(&self.id);
        let_go(&directory).map_err(|e| AgentError::io("starting the init process", e))?;
        *started = true;
        Ok(())
    }

    /// Stops all processes, or lets them go on; returns when that has happened, and the host has what they have written,
    /// if it takes that soon. Blocks.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] when it has ended; a process does not stop.
    pub fn set_paused(&self, paused: bool) -> Result<(), AgentError> {
        let _pausing = lock(&self.pausing);
        // Whoever was told too late what it is may say it again.
        if self.status() == ContainerStatus::STOPPED {
            return Err(AgentError::WrongState(format!("container {:?} is not running", self.id)));
        }
        let cgroup = Cgroup::of(&self.id);
        cgroup.set_frozen(paused).map_err(|e| AgentError::io("freezing the cgroup", e))?;
        *lock(&self.paused) = paused;
        if paused && let Err(error) = self.write_out.of(cgroup.processes().unwrap_or_default()) {
            tracing::warn!(%error, "what container {:?} has written comes to the host later", self.id);
        }
        Ok(())
    }

    /// See [`crate::guest::disks::Disks::translate_limits`].
    ///
    /// # Errors
    /// As that.
    pub fn translate_limits(&self, resources: &mut LinuxResources) -> Result<(), AgentError> {
        lock(&self.storages).disks().translate_limits(resources)
    }

    /// Sets the limits that are named.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] when it has ended; what the kernel refuses.
    pub fn limit(&self, resources: &LinuxResources) -> Result<(), AgentError> {
        if self.status() == ContainerStatus::STOPPED {
            return Err(AgentError::WrongState(format!("container {:?} has ended", self.id)));
        }
        let done = Cgroup::of(&self.id).limit(resources);
        done.map_err(|e| AgentError::io("setting the limits", e))
    }

    /// What it uses.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn stats(&self) -> Result<ContainerStatsResponse, AgentError> {
        stats::of(&Cgroup::of(&self.id)).map_err(|e| AgentError::io("reading the cgroup", e))
    }

    /// Reserves the id of an exec, in a container that waits for its start or runs.
    ///
    /// # Errors
    /// [`AgentError::WrongState`], [`AgentError::Exists`], [`AgentError::TooMany`].
    pub fn reserve_exec(self: &Arc<Self>, exec_id: &str) -> Result<ExecReservation, AgentError> {
        if !matches!(self.status(), ContainerStatus::CREATED | ContainerStatus::RUNNING) {
            return Err(AgentError::WrongState(format!("container {:?} is not running", self.id)));
        }
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec_id) {
            return Err(AgentError::Exists(format!("exec {exec_id:?}")));
        }
        if execs.len() >= MAX_EXECS {
            return Err(AgentError::TooMany("processes"));
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(ExecReservation {
            container: Arc::clone(self),
            exec_id: exec_id.to_owned(),
            process: None,
        })
    }

    /// The name of a directory in the bundle that was not used before, and its path.
    pub fn next_process_directory(&self) -> (String, PathBuf) {
        let name = format!("process-{}", self.process_directories.fetch_add(1, Ordering::Relaxed));
        let path = self.bundle.join(&name);
        (name, path)
    }

    /// The process of that exec id; empty: init.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], also while it is being made.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, AgentError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = lock(&self.execs);
        let known = execs.get(exec_id).and_then(Option::clone);
        known.ok_or_else(|| AgentError::NotFound(format!("exec {exec_id:?}")))
    }

    /// Forgets an exec that has ended.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] while it is made or lives, or for the init process.
    pub fn delete_exec(&self, exec_id: &str) -> Result<(), AgentError> {
        if exec_id.is_empty() {
            return Err(AgentError::Invalid(
                "the init process is deleted with its container".to_owned(),
            ));
        }
        if let Some(None) = lock(&self.execs).get(exec_id) {
            return Err(AgentError::WrongState(format!("exec {exec_id:?} is being made")));
        }
        if self.process(exec_id)?.exit().is_none() {
            return Err(AgentError::WrongState(format!("exec {exec_id:?} is running")));
        }
        lock(&self.execs).remove(exec_id);
        Ok(())
    }

    /// Sends a signal to every process in the cgroup.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn signal_all(&self, signal: i32) -> Result<(), AgentError> {
        let cgroup = Cgroup::of(&self.id);
        if signal == libc::SIGKILL {
            return cgroup.kill().map_err(|e| AgentError::io("killing the cgroup", e));
        }
        for pid in cgroup.processes().map_err(|e| AgentError::io("reading the cgroup", e))? {
            // SAFETY: kill touches no memory. One that has ended meanwhile needs no signal.
            unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }

    /// The processes in the cgroup with pids above `after`, those that were asked for by their exec id; as many as
    /// one answer takes, and whether there are further ones.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub async fn processes(&self, after: u32) -> Result<(Vec<ProcessInfo>, bool), AgentError> {
        let (mut processes, more) = self.processes_by_name(after)?;
        let pids = processes.iter().map(|process| process.pid as i32).collect();
        let commands = self.commands.of(pids, ps::command).await.unwrap_or_default();
        for (process, command) in processes.iter_mut().zip(commands) {
            if !command.is_empty() {
                process.command = command;
            }
        }
        let fit = ps::that_fit(&processes);
        let more = more || fit < processes.len();
        processes.truncate(fit);
        Ok((processes, more))
    }

    fn processes_by_name(&self, after: u32) -> Result<(Vec<ProcessInfo>, bool), AgentError> {
        let mut pids = Cgroup::of(&self.id)
            .processes()
            .map_err(|e| AgentError::io("reading the cgroup", e))?;
        pids.retain(|pid| *pid as u32 > after);
        pids.sort_unstable();
        let more = pids.len() > ps::MOST_AT_ONCE;
        pids.truncate(ps::MOST_AT_ONCE);
        let execs = lock(&self.execs);
        let named: HashMap<i32, &String> = execs
            .iter()
            .filter_map(|(id, process)| process.as_ref().map(|p| (p.pid(), id)))
            .collect();
        let info = |pid| ProcessInfo {
            exec_id: named.get(&pid).map(ToString::to_string).unwrap_or_default(),
            ..ps::describe(pid)
        };
        Ok((pids.into_iter().map(info).collect(), more))
    }

    /// Whether it may be deleted.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] while it runs.
    pub fn check_deletable(&self) -> Result<(), AgentError> {
        if matches!(self.status(), ContainerStatus::RUNNING | ContainerStatus::PAUSED) {
            return Err(AgentError::WrongState(format!("container {:?} is running", self.id)));
        }
        Ok(())
    }

    /// The storages, to undo them.
    pub fn take_storages(&self) -> Storages {
        std::mem::take(&mut *lock(&self.storages))
    }

    /// Those that are left, when they could not be undone.
    pub fn put_back_storages(&self, storages: Storages) {
        *lock(&self.storages) = storages;
    }
}

/// Tells libcontainer's init process to go on. The path may be too long for an address, so it is
/// named through a descriptor.
fn let_go(directory: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{NOTIFY_SOCKET}", directory.as_raw_fd());
    UnixStream::connect(path)?.write_all(b"start container")
}

/// An exec id that is taken; free again when dropped before [`ExecReservation::commit`].
#[derive(Debug)]
pub struct ExecReservation {
    container: Arc<Container>,
    exec_id: String,
    process: Option<Arc<Process>>,
}

impl ExecReservation {
    /// The process is there.
    pub fn commit(mut self, process: Process) {
        self.process = Some(Arc::new(process));
    }
}

impl Drop for ExecReservation {
    fn drop(&mut self) {
        let exec_id = std::mem::take(&mut self.exec_id);
        let mut execs = lock(&self.container.execs);
        match self.process.take() {
            Some(process) => execs.insert(exec_id, Some(process)),
            None => execs.remove(&exec_id),
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
