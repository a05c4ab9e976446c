//! One sandbox: a machine, its agent, and the containers in it.
//!
//! All state is in a [`Table`] behind a lock that is never held across I/O. An operation takes what it needs
//! in the table first, works, and then records what came of it; it runs as a task of its own, so that a caller
//! who goes away does not leave it half done.

mod abandon;
mod attachments;
mod capacity;
mod containers;
pub mod event;
mod files;
mod forward;
mod kill;
mod launch;
mod network;
mod oom_score;
mod out_of_memory;
mod patience;
mod pod;
mod processes;
mod resolver;
mod shared_binds;
mod spec;
mod stand_ins;
mod stop;
pub(crate) mod table;

use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::guest::log::Tail;
use crate::host::cgroup::Cgroup;
use crate::host::overhead::{self, Overhead};
use crate::host::paths::SandboxPaths;
use crate::host::persist::ProcessId;
use crate::host::undo::Undo;
use crate::io::Stdio;
use crate::oci::plan::RootfsMount;
use crate::oci::plan::disks::Writes;
use crate::sandbox::event::Exit;
use crate::sandbox::stand_ins::StandIns;
use crate::sandbox::table::{Phase, Table};
use crate::vm::Vm;
use oci_spec::runtime::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

pub use launch::Launch;
pub use processes::NewExec;
use processes::PendingExecs;
pub use spec::{PodFile, PodResize, PodSize, PodSpec, SandboxSpec};

/// A container to be made.
#[derive(Debug)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// Its OCI spec.
    pub spec: Spec,
    /// The directory of its `config.json`; hooks are told of it.
    pub bundle: PathBuf,
    /// Its root file system; empty: the directory that the spec names.
    pub rootfs: Vec<RootfsMount>,
    /// Its init's standard streams.
    pub stdio: Stdio,
}

/// What there is to know about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessState {
    /// Where in its life.
    pub phase: Phase,
    /// That of the host's process which stands for its container; 0 before there is one, or before it runs.
    pub pid: u32,
}

/// Where a sandbox is in its start.
#[derive(Clone)]
enum Readiness {
    Booting,
    Ready(Agent),
    /// It did not start.
    Failed(String),
    /// It was ready, and has ended.
    Ended(String),
}

/// What its settings have to say while it runs.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    writes: Writes,
    slots: u32,
    vhost_net: Option<&'static str>,
}

/// A handle to a sandbox; clones are the same one.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    id: String,
    paths: SandboxPaths,
    vm: Vm,
    /// The VMM and the file server.
    helpers: [ProcessId; 2],
    /// The processes that stand for its containers, where there is one for each.
    stand_ins: StandIns,
    ready: watch::Sender<Readiness>,
    table: Mutex<Table>,
    next_stream: AtomicU64,
    undo: Mutex<Option<Undo>>,
    stopping: AtomicBool,
    /// Connections to localhost are forwarded, or are about to be.
    forwards: AtomicBool,
    /// Closed when the sandbox has ended.
    stopped: OnceLock<watch::Receiver<()>>,
    guest_tail: Tail,
    pending_execs: Mutex<PendingExecs>,
    cgroup: Option<Arc<Cgroup>>,
    capacity: tokio::sync::Mutex<capacity::Capacity>,
    /// Numbers of the devices, by container; and whether what is on them outlives it.
    disks: Mutex<BTreeMap<String, Vec<(u32, bool)>>>,
    network: tokio::sync::Mutex<network::Network>,
    /// The places of what is shown for all containers.
    shared_binds: tokio::sync::Mutex<BTreeSet<String>>,
    resolver: resolver::Resolver,
    /// What was told of the pod, if it has no container of its own.
    told: Option<PodSpec>,
    /// Where it goes what containers write to their root file systems.
    writes: Writes,
    /// Disks and network interfaces that the machine has room for.
    slots: u32,
    /// The device by which the host's kernel serves its network interfaces, where it does.
    vhost_net: Option<&'static str>,
    /// The network interfaces that it has.
    interfaces: AtomicUsize,
    pod: Mutex<pod::Pod>,
    oom_scores: Mutex<oom_score::OomScores>,
}

impl Sandbox {
    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The host process that stands for the sandbox, and for its first container: its VMM.
    pub fn pid(&self) -> u32 {
        self.0.helpers[0].pid as u32
    }

    /// What the sandbox's own processes use of the host; this process is the owner.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn overhead(&self) -> Result<Overhead> {
        let [vmm, file_server] = self.0.helpers;
        let stand_ins = self.0.stand_ins.usage();
        Ok(Overhead {
            owner: overhead::of(ProcessId::own()?)?,
            vmm: overhead::of(vmm)?,
            file_server: overhead::of(file_server)?,
            processes: 3 + stand_ins.len() as u64,
            stand_ins: stand_ins.into_iter().sum(),
        })
    }

    /// Whether there is no container in it.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// Looks at a process; `exec` empty: the init.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn state(&self, id: &str, exec: &str) -> Result<ProcessState> {
        let mut table = self.table();
        let process = table.process(id, exec)?;
        Ok(ProcessState { phase: process.phase, pid: process.pid })
    }

    /// Waits for a process to end.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn wait(&self, id: &str, exec: &str) -> Result<Exit> {
        let mut exit = self.table().process(id, exec)?.exit();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            // Deleted while it was only created.
            _ => Err(Error::NotFound(format!("container {id}"))),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<String, Vec<(u32, bool)>>> {
        self.0.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending_execs(&self) -> MutexGuard<'_, PendingExecs> {
        self.0.pending_execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent, once it has reported in.
    async fn agent(&self) -> Result<Agent> {
        let mut ready = self.0.ready.subscribe();
        let state = ready.wait_for(|r| !matches!(r, Readiness::Booting)).await;
        match state.as_deref() {
            Ok(Readiness::Ready(agent)) => Ok(agent.clone()),
            Ok(Readiness::Failed(reason)) => Err(Error::Machine(reason.clone())),
            Ok(Readiness::Ended(reason)) => Err(Error::Ended(reason.clone())),
            _ => Err(Error::Ended("it is being dropped".into())),
        }
    }

    /// Waits for its end, which somebody wanted or not. Gives whether it was wanted.
    pub async fn ended(&self) -> bool {
        let mut ready = self.0.ready.subscribe();
        let ended = |ready: &Readiness| matches!(ready, Readiness::Failed(_) | Readiness::Ended(_));
        // Fails when the sandbox is dropped, which is its end as well.
        let _ = ready.wait_for(ended).await;
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Runs `work` to its end, whether or not the caller waits for it.
    async fn detached<T: Send + 'static>(
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::spawn(work).await;
        done.unwrap_or_else(|e| Err(Error::system("run a task")(std::io::Error::other(e))))
    }
}

#[cfg(test)]
mod tests;
