//! The containers of the guest: which there are, and what may be done with each.
//!
//! An id is reserved before any work for it begins, and no lock is held across an await.

mod commands;
mod container;
mod oom;
mod pids;
mod process;
mod stats;
mod write_out;

use crate::error::AgentError;
use crate::guest::cgroup::Cgroup;
use crate::guest::pod_init::PodInit;
use crate::guest::reaper::{Exit, Reaper};
use crate::guest::storage::{Storages, let_go_of_shared};
use crate::io::streams::Streams;
use crate::spec::io_weight;
use crate::work::deadline::Deadline;
use crate::work::job::{Answer, Job, PROCESS_FILE, SPEC_FILE, STATE_DIR};
use crate::work::zygote::Zygote;
use container::Container;
use oci_spec::runtime::{LinuxResources, PosixRlimit};
use process::Process;
use protocol::agent::{
    ContainerStateResponse, ContainerStatsResponse, CreateContainerRequest, ExecProcessRequest,
    ProcessInfo, SignalProcessRequest, Stdio,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::OnceCell;

/// Most containers at once.
const MAX_CONTAINERS: usize = 128;

/// A directory per container: its specification and those of its processes.
const BUNDLES_DIR: &str = "/run/kata-like/bundles";

/// All containers; see the module.
#[derive(Debug)]
pub struct Containers {
    zygote: Zygote,
    reaper: Arc<Reaper>,
    streams: Arc<Streams>,
    by_id: Mutex<HashMap<String, Entry>>,
    limits: Mutex<Vec<PosixRlimit>>,
    /// The first process of the pod, once a container has joined its PID namespace.
    pod_init: OnceCell<PodInit>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// Being created or deleted; the word is for the error message.
    Busy(&'static str),
    Ready(Arc<Container>),
}

impl Containers {
    /// None yet.
    pub fn new(zygote: Zygote, reaper: Arc<Reaper>, streams: Arc<Streams>) -> Self {
        let (by_id, limits, pod_init) = (Mutex::default(), Mutex::default(), OnceCell::new());
        Self { zygote, reaper, streams, by_id, limits, pod_init }
    }

    /// Takes the limits of processes that set none, an OCI `process.rlimits`.
    ///
    /// # Errors
    /// It is no such array.
    pub fn set_limits(&self, rlimits_json: &[u8]) -> Result<(), AgentError> {
        let limits = serde_json::from_slice(rlimits_json)
            .map_err(|e| AgentError::Invalid(format!("rlimits: {e}")))?;
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    fn limits(&self) -> Vec<PosixRlimit> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Creates a container whose init process waits for [`Containers::start`]; its pid.
    ///
    /// # Errors
    /// Nothing is left of it then.
    pub async fn create(
        &self,
        request: CreateContainerRequest,
        deadline: Deadline,
    ) -> Result<i32, AgentError> {
        let id = request.container_id;
        check_id(&id)?;
        let begin = Instant::now();
        let reservation = self.reserve(&id)?;
        let (disks, wanted) = (request.disks, request.storages);
        let mut storages = Storages::default();
        if !(disks.is_empty() && wanted.is_empty()) {
            let id = id.clone();
            storages = blocking(move || Storages::make(&id, &disks, &wanted)).await?;
        }
        let bundle = bundle_of(&id);
        let stdio = request.stdio.unwrap_or_default();
        let translated = storages.disks().translate(request.spec_json);
        let joined = match translated {
            Ok(spec) => {
                self.join_pids(spec, &request.joins_pids_of, request.joins_pids_of_pod).await
            }
            Err(error) => Err(error),
        };
        let made = match joined {
            Ok(spec_json) => self.create_in(&id, &spec_json, stdio, deadline).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(init) => {
                let pid = init.pid();
                tracing::info!(id, pid, ms = begin.elapsed().as_millis(), "container created");
                let container = Arc::new(Container::new(id, bundle, init, storages));
                container.end_with_init();
                reservation.commit(container);
                Ok(pid)
            }
            Err(error) => {
                if let Err(also) = clean_up(id, storages).await.1 {
                    tracing::error!(error = %also, "cleaning up after a failed create");
                }
                Err(error)
            }
        }
    }

    async fn create_in(
        &self,
        id: &str,
        spec_json: &[u8],
        stdio: Stdio,
        deadline: Deadline,
    ) -> Result<Process, AgentError> {
        let bundle = bundle_of(id);
        std::fs::create_dir_all(&bundle)
            .and_then(|()| std::fs::write(bundle.join(SPEC_FILE), spec_json))
            .map_err(|e| AgentError::io("writing the specification", e))?;
        let job = Job {
            container_id: id.to_owned(),
            bundle,
            process: None,
            sub_cgroup: String::new(),
            limits: self.limits(),
            wanted: process::wanted(&stdio),
            plain_newlines: stdio.plain_newlines,
        };
        self.launch(&job, stdio, deadline).await
    }

    /// Has a worker make a process and takes it over.
    async fn launch(
        &self,
        job: &Job,
        stdio: Stdio,
        deadline: Deadline,
    ) -> Result<Process, AgentError> {
        let expectation = self.reaper.expect();
        let (answer, fds) = self.zygote.run(job, deadline).await?;
        let (pid, terminal) = match answer {
            Answer::Started { pid, terminal, unknown_calls } => {
                if !unknown_calls.is_empty() {
                    let names = unknown_calls.join(" ");
                    tracing::info!(id = job.container_id, names, "seccomp: not in this kernel");
                }
                (pid, terminal)
            }
            Answer::Failed(failure) => return Err(failure.into()),
            Answer::Begun { .. } => return Err(AgentError::Internal("no last answer".to_owned())),
        };
        let exit = expectation.claim(pid);
        Process::new(pid, exit, terminal, fds, stdio, Arc::clone(&self.streams))
    }

    /// Lets the init process go.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] unless it waits for that.
    pub fn start(&self, id: &str) -> Result<(), AgentError> {
        self.container(id)?.start()
    }

    /// Creates one more process in a container that waits for its start or runs, and lets it go; its pid.
    ///
    /// # Errors
    /// Nothing is left of it then.
    pub async fn exec(
        &self,
        request: ExecProcessRequest,
        deadline: Deadline,
    ) -> Result<i32, AgentError> {
        check_id(&request.exec_id)?;
        let container = self.container(&request.container_id)?;
        let reservation = container.reserve_exec(&request.exec_id)?;
        let stdio = request.stdio.unwrap_or_default();
        let (name, path) = container.next_process_directory();
        let directory = Directory(path);
        std::fs::create_dir(&directory.0)
            .and_then(|()| std::fs::write(directory.0.join(PROCESS_FILE), &request.process_json))
            .map_err(|e| AgentError::io("writing the process", e))?;
        let job = Job {
            container_id: request.container_id,
            bundle: container.bundle().to_owned(),
            process: Some(name),
            sub_cgroup: request.sub_cgroup,
            limits: self.limits(),
            wanted: process::wanted(&stdio),
            plain_newlines: stdio.plain_newlines,
        };
        let begin = Instant::now();
        let process = self.launch(&job, stdio, deadline).await?;
        drop(directory);
        let pid = process.pid();
        let (id, exec_id) = (&job.container_id, &request.exec_id);
        tracing::info!(id, exec_id, pid, ms = begin.elapsed().as_millis(), "process added");
        reservation.commit(process);
        Ok(pid)
    }

    /// Sends a signal to one process or to all of a container.
    ///
    /// # Errors
    /// [`AgentError::Finished`] when the one process has ended.
    pub fn signal(&self, request: &SignalProcessRequest) -> Result<(), AgentError> {
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|signal| (1..=libc::SIGRTMAX()).contains(signal))
            .ok_or_else(|| AgentError::Invalid(format!("signal {} is none", request.signal)))?;
        let container = self.container(&request.container_id)?;
        match (request.all, request.exec_id.is_empty()) {
            (true, true) => container.signal_all(signal),
            (true, false) => {
                Err(AgentError::Invalid("a signal goes to one process or to all".to_owned()))
            }
            (false, _) => container.process(&request.exec_id)?.signal(signal),
        }
    }

    /// Waits until a process ends.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, AgentError> {
        let mut cell = self.container(id)?.process(exec_id)?.exit_cell();
        let exit = cell.wait_for(Option::is_some).await;
        exit.ok()
            .and_then(|exit| *exit)
            .ok_or_else(|| AgentError::Internal("the exit was lost".to_owned()))
    }

    /// Waits until more than `seen` processes of a container were killed for lack of memory, or its init has
    /// ended; how many they are.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], or when its cgroup cannot be watched.
    pub async fn wait_out_of_memory(&self, id: &str, seen: u64) -> Result<u64, AgentError> {
        let container = self.container(id)?;
        let cgroup = Cgroup::of(id);
        let mut init = container.init().exit_cell();
        let kills = tokio::select! {
            kills = oom::wait(&cgroup, seen) => kills,
            _ = init.wait_for(Option::is_some) => cgroup.oom_kills(),
        };
        kills.map_err(|e| AgentError::io("watching the cgroup", e))
    }

    /// What state a container is in.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub fn state(&self, id: &str) -> Result<ContainerStateResponse, AgentError> {
        let container = self.container(id)?;
        Ok(ContainerStateResponse {
            status: container.status().into(),
            pid: container.init().pid() as u32,
            ..ContainerStateResponse::default()
        })
    }

    /// The processes in a container's cgroup with pids above `after`, as many as one answer takes, and whether there
    /// are further ones.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], or when the cgroup cannot be read.
    pub async fn processes(
        &self,
        id: &str,
        after: u32,
    ) -> Result<(Vec<ProcessInfo>, bool), AgentError> {
        self.container(id)?.processes(after).await
    }

    /// Stops a container's processes, or lets them go on.
    ///
    /// # Errors
    /// [`AgentError::WrongState`], or a process that does not stop.
    pub async fn set_paused(&self, id: &str, paused: bool) -> Result<(), AgentError> {
        let container = self.container(id)?;
        blocking(move || container.set_paused(paused)).await
    }

    /// Sets those of a container's limits that are named.
    ///
    /// # Errors
    /// They are no `resources` object; [`AgentError::WrongState`]; what the kernel refuses.
    pub async fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), AgentError> {
        let container = self.container(id)?;
        let mut resources: LinuxResources = serde_json::from_slice(resources_json)
            .map_err(|e| AgentError::Invalid(format!("linux.resources: {e}")))?;
        container.translate_limits(&mut resources)?;
        io_weight::to_file(&mut resources)
            .map_err(|e| AgentError::Invalid(format!("linux.resources: {e}")))?;
        blocking(move || container.limit(&resources)).await
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], or when its cgroup cannot be read.
    pub async fn stats(&self, id: &str) -> Result<ContainerStatsResponse, AgentError> {
        let container = self.container(id)?;
        blocking(move || container.stats()).await
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] when it has none.
    pub fn resize(
        &self,
        id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), AgentError> {
        self.container(id)?.process(exec_id)?.resize(width, height)
    }

    /// Forgets an exec that has ended.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] while it lives.
    pub fn delete_process(&self, id: &str, exec_id: &str) -> Result<(), AgentError> {
        self.container(id)?.delete_exec(exec_id)
    }

    /// Removes a container that has stopped, or was never started.
    ///
    /// # Errors
    /// [`AgentError::WrongState`] while it runs. When something cannot be removed it can be tried again.
    pub async fn delete(&self, id: &str) -> Result<(), AgentError> {
        let container = self.container(id)?;
        container.check_deletable()?;
        self.by_id().insert(id.to_owned(), Entry::Busy("being deleted"));
        container.init().kill();
        let _ = container.init().exit_cell().wait_for(Option::is_some).await;
        let (storages, result) = clean_up(id.to_owned(), container.take_storages()).await;
        match result {
            Ok(()) => {
                tracing::info!(id, "container deleted");
                self.by_id().remove(id);
                Ok(())
            }
            Err(error) => {
                container.put_back_storages(storages);
                self.by_id().insert(id.to_owned(), Entry::Ready(container));
                Err(error)
            }
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, AgentError> {
        match self.by_id().get(id) {
            Some(Entry::Ready(container)) => Ok(Arc::clone(container)),
            Some(Entry::Busy(what)) => {
                Err(AgentError::WrongState(format!("container {id:?} is {what}")))
            }
            None => Err(AgentError::NotFound(format!("container {id:?}"))),
        }
    }

    fn reserve(&self, id: &str) -> Result<Reservation<'_>, AgentError> {
        let mut by_id = self.by_id();
        if by_id.contains_key(id) {
            return Err(AgentError::Exists(format!("container {id:?}")));
        }
        if by_id.len() >= MAX_CONTAINERS {
            return Err(AgentError::TooMany("containers"));
        }
        by_id.insert(id.to_owned(), Entry::Busy("being created"));
        Ok(Reservation { containers: self, id: id.to_owned(), container: None })
    }

    fn by_id(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that is taken; free again when dropped before [`Reservation::commit`].
struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    container: Option<Arc<Container>>,
}

impl Reservation<'_> {
    fn commit(mut self, container: Arc<Container>) {
        self.container = Some(container);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let id = std::mem::take(&mut self.id);
        let mut by_id = self.containers.by_id();
        match self.container.take() {
            Some(container) => by_id.insert(id, Entry::Ready(container)),
            None => by_id.remove(&id),
        };
    }
}

/// Removed, with all that is in it, when dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = remove_directory(&self.0) {
            tracing::warn!(%error, "cleaning up after an exec");
        }
    }
}

/// Removes whatever there is of a container; the storages come back with those that are left.
async fn clean_up(id: String, mut storages: Storages) -> (Storages, Result<(), AgentError>) {
    let work = move || {
        let removed = Cgroup::of(&id)
            .remove()
            .map_err(|e| AgentError::io(format!("removing the cgroup of {id:?}"), e))
            .and_then(|()| remove_directory(&Path::new(STATE_DIR).join(&id)))
            .and_then(|()| remove_directory(&bundle_of(&id)));
        if removed.is_ok() {
            storages.undo();
            let_go_of_shared(&id);
        }
        Ok((storages, removed))
    };
    blocking(work).await.unwrap_or_else(|error| (Storages::default(), Err(error)))
}

fn remove_directory(path: &Path) -> Result<(), AgentError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(AgentError::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Runs what may block on a file system away from the one thread that serves.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
}

fn bundle_of(id: &str) -> PathBuf {
    Path::new(BUNDLES_DIR).join(id)
}

fn check_id(id: &str) -> Result<(), AgentError> {
    protocol::ids::check(id).map_err(|error| AgentError::Invalid(error.to_string()))
}
