//! Starting a sandbox: its directory, its two processes, and the agent's first words.

use super::capacity::{self, Capacity};
use super::{Fixed, Inner, PodSpec, Readiness, Sandbox, SandboxSpec, files};
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::guest::clock;
use crate::guest::log::{self as guest_log, Tail};
use crate::host::cgroup::Cgroup;
use crate::host::network::VHOST_NET;
use crate::host::paths::SandboxPaths;
use crate::host::persist::{self, ProcessId, SandboxState};
use crate::host::storage;
use crate::host::uid::Uid;
use crate::host::undo::Undo;
use crate::milestone;
use crate::sandbox::event::SandboxEvent;
use crate::sandbox::stand_ins::StandIns;
use crate::sandbox::table::Table;
use crate::settings::Settings;
use crate::vm::{Cgroups, Message, Vm};
use protocol::ports;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// How long the last owner of this id may take to end: more than its guest may take to sync (`stop`).
const OWNER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(40);

/// How long the log of a guest may be gone before its agent counts as gone.
const AGENT_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// A sandbox to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its id.
    pub id: String,
    /// Its place in the file system.
    pub paths: SandboxPaths,
    /// Everything else.
    pub settings: Settings,
    /// What is its own.
    pub spec: SandboxSpec,
    /// Takes what there is to tell, until [`Sandbox::stop`] is done.
    pub events: mpsc::UnboundedSender<SandboxEvent>,
}

impl Sandbox {
    /// Waits, not on this thread, for the last owner of a sandbox's id to end, and removes what it left: so that
    /// [`Sandbox::launch`] need not wait.
    ///
    /// # Errors
    /// As [`persist::clean_up`].
    pub async fn vacate(paths: &SandboxPaths) -> Result<()> {
        if !paths.root().exists() {
            return Ok(());
        }
        let of_last = paths.clone();
        let gone = move || persist::vacate(&of_last, OWNER_PATIENCE).map(drop);
        tokio::task::spawn_blocking(gone)
            .await
            .map_err(Error::system("wait for the last sandbox of this id"))?
    }

    /// Starts the machine and returns without waiting for its guest.
    ///
    /// To be called on a thread that lives as long as the sandbox, in the mount namespace that
    /// [`storage::private_mounts`] makes.
    ///
    /// # Errors
    /// The directory is taken, a mount fails, or a program can't be started. Nothing is left then.
    pub fn launch(launch: Launch) -> Result<Self> {
        let Launch { id, paths, settings, spec, events } = launch;
        let hostname = spec.hostname(&id);
        milestone::mark("sandbox-launch", &id);
        let mut undo = Undo::new();
        persist::claim(&paths, OWNER_PATIENCE)?;
        let removed = paths.clone();
        undo.push("remove the sandbox's directory", move || removed.remove());
        let cgroup = spec.cgroup.as_ref().filter(|_| settings.cgroups);
        let cgroup = cgroup.map(|to| Cgroup::make(to, &id));
        let cgroup = cgroup.transpose()?.flatten().map(Arc::new);
        let ceiling = cgroup.as_ref().and_then(|cgroup| cgroup.ceiling().memory);
        let settings = capacity::fitted(settings, spec.size, ceiling);
        let made = cgroup.as_ref().map(|cgroup| cgroup.made().clone());
        if let Some(cgroup) = cgroup.clone() {
            undo.push("leave the cgroup", move || cgroup.leave());
        }
        let user = Uid::take(&settings.uids)?;
        let uid = user.number();
        undo.push("free the uid", move || {
            drop(user);
            Ok(())
        });
        let mut state = SandboxState {
            owner: ProcessId::own()?,
            helpers: Vec::new(),
            cgroup: made,
            uid: Some(uid),
            network: None,
        };
        state.write(&paths)?;
        storage::make_shared(&paths, &mut undo)?;
        if let Some(pod) = &spec.pod {
            files::write(&paths, &pod.files)?;
        }
        let directories = cgroup.as_ref().map(|cgroup| cgroup.directories()).transpose()?;
        let cgroups = directories.as_ref().map(|[vmm, file_server]| Cgroups {
            vmm: vmm.as_fd(),
            file_server: file_server.as_fd(),
        });
        let (vm, messages, helpers) = Vm::launch(&settings, &paths, uid, cgroups)?;
        milestone::mark("vmm-spawned", &id);
        state.helpers = helpers.to_vec();
        state.write(&paths)?;
        let fixed = Fixed {
            writes: settings.writes,
            slots: settings.max_disks,
            vhost_net: settings.vhost_net.then_some(VHOST_NET),
        };
        let capacity = Capacity::new(&settings, spec.size, cgroup);
        let stand_ins = StandIns::new(settings.stand_in, uid);
        let machine = (vm, helpers, capacity, stand_ins);
        let sandbox = Self::around(id, paths, machine, (spec.pod, fixed, undo), events);
        sandbox.clone().boot(messages, hostname, settings.start_timeout);
        Ok(sandbox)
    }

    /// A sandbox around a machine whose guest has yet to report in.
    pub(super) fn around(
        id: String,
        paths: SandboxPaths,
        (vm, helpers, capacity, stand_ins): (Vm, [ProcessId; 2], Capacity, StandIns),
        (told, fixed, undo): (Option<PodSpec>, Fixed, Undo),
        events: mpsc::UnboundedSender<SandboxEvent>,
    ) -> Self {
        Self(Arc::new(Inner {
            id,
            paths,
            vm,
            helpers,
            stand_ins,
            ready: watch::Sender::new(Readiness::Booting),
            table: Mutex::new(Table::new(events)),
            next_stream: AtomicU64::new(1),
            undo: Mutex::new(Some(undo)),
            stopping: AtomicBool::new(false),
            forwards: AtomicBool::new(false),
            stopped: OnceLock::new(),
            guest_tail: Tail::default(),
            pending_execs: Mutex::default(),
            cgroup: capacity.cgroup(),
            capacity: capacity.into(),
            disks: Mutex::default(),
            network: tokio::sync::Mutex::default(),
            shared_binds: tokio::sync::Mutex::default(),
            resolver: super::resolver::Resolver::default(),
            told,
            writes: fixed.writes,
            slots: fixed.slots,
            vhost_net: fixed.vhost_net,
            interfaces: AtomicUsize::new(0),
            pod: Mutex::default(),
            oom_scores: Mutex::default(),
        }))
    }

    /// Listens to the machine, makes the sandbox ready, and sees its end.
    pub(super) fn boot(
        self,
        messages: mpsc::Receiver<Message>,
        hostname: String,
        patience: std::time::Duration,
    ) {
        let (reported, log) = tokio::sync::oneshot::channel();
        tokio::spawn(self.clone().listen(messages, reported));
        let booting = self.clone();
        tokio::spawn(async move {
            let first_words = booting.first_words(log, &hostname);
            match tokio::time::timeout(patience, first_words).await {
                Ok(Ok(agent)) => {
                    milestone::mark("agent-ready", booting.id());
                    booting.settle(Readiness::Ready(agent));
                }
                Ok(Err(error)) => {
                    let why = format!("the guest's agent did not start: {}", error.chain());
                    booting.0.vm.stop(why);
                }
                Err(_) => booting.0.vm.stop(format!(
                    "the guest's agent did not report in within {} s",
                    patience.as_secs()
                )),
            }
        });
        tokio::spawn(self.see_the_end());
    }

    /// The state only ever leaves Booting once, and then only to Failed or Ended.
    fn settle(&self, new: Readiness) {
        self.0.ready.send_if_modified(|now| {
            *now = match (&*now, new) {
                (Readiness::Failed(_) | Readiness::Ended(_), _) => return false,
                (Readiness::Ready(_), Readiness::Failed(reason)) => Readiness::Ended(reason),
                (_, new) => new,
            };
            true
        });
    }

    async fn first_words(
        &self,
        log: tokio::sync::oneshot::Receiver<()>,
        hostname: &str,
    ) -> Result<Agent> {
        // Meanwhile the guest boots.
        let cgroup = self.0.cgroup.clone();
        let entered = cgroup.map(|cgroup| tokio::task::spawn_blocking(move || cgroup.enter()));
        log.await.map_err(|_| Error::Ended("the machine ended before its agent spoke".into()))?;
        milestone::mark("agent-reported", self.id());
        let agent = Agent::new(self.0.vm.connect(ports::RPC).await?);
        agent.setup_sandbox(hostname, ports::SHARED_TAG).await?;
        tokio::spawn(clock::keep(agent.clone()));
        tokio::spawn(self.clone().follow_use(agent.clone()));
        if let Some(entered) = entered {
            entered.await.map_err(Error::system("enter the cgroup"))??;
        }
        Ok(agent)
    }

    async fn listen(
        self,
        mut messages: mpsc::Receiver<Message>,
        reported: tokio::sync::oneshot::Sender<()>,
    ) {
        let mut reported = Some(reported);
        while let Some(message) = messages.recv().await {
            match message {
                Message::Running(times) => {
                    let id = self.id();
                    milestone::mark_at("vmm-start", id, times.process_start);
                    milestone::mark_at("vmm-configured", id, times.config_read);
                    milestone::mark_at("vmm-built", id, times.machine_built);
                    milestone::mark_at("vcpus-started", id, times.vcpus_started);
                }
                Message::Accepted { port: ports::RESOLVER, stream } => self.ask_resolver(stream),
                // The log is connected once; whatever else the guest connects is closed.
                Message::Accepted { port: ports::LOG, stream } => {
                    if let Some(reported) = reported.take() {
                        tokio::spawn(self.clone().guest_log(stream));
                        let _ = reported.send(());
                    }
                }
                Message::Accepted { .. } => {}
                Message::Stderr { who, stream } => {
                    let id = self.id().to_owned();
                    tokio::spawn(async move {
                        guest_log::forward(who, &id, stream, Tail::default()).await;
                    });
                }
            }
        }
    }

    async fn guest_log(self, stream: OwnedFd) {
        let stream = StdUnixStream::from(stream);
        let adopted = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        match adopted {
            Ok(stream) => {
                guest_log::forward("guest", self.id(), stream, self.0.guest_tail.clone()).await;
            }
            Err(error) => tracing::warn!("guest log: {error}"),
        }
        // The end of the log is the end of the agent, and usually the machine's own end follows at once.
        tokio::time::sleep(AGENT_GRACE).await;
        self.0.vm.stop("the guest's agent is gone");
    }

    async fn see_the_end(self) {
        let end = self.0.vm.ended().await;
        let expected = end.expected || self.0.stopping.load(Ordering::Relaxed);
        let mut reason = end.reason;
        if !expected {
            let console = self.console();
            if let Some(panic) = self.0.guest_tail.panic().or_else(|| guest_log::panic(&console)) {
                reason = format!("{reason} ({panic})");
            }
            self.log_last_words(&console);
        }
        tracing::info!("sandbox {} ended: {reason}", self.id());
        self.settle(Readiness::Failed(reason.clone()));
        self.table().sandbox_ended(&reason);
    }

    /// The end of the console, where a panic is: then nobody in the guest sends its log any more.
    fn console(&self) -> Vec<String> {
        const TAIL: usize = 4096;
        let text = std::fs::read(self.0.paths.console_log()).unwrap_or_default();
        guest_log::lines(&text[text.len().saturating_sub(TAIL)..]).collect()
    }

    /// What the guest said last.
    fn log_last_words(&self, console: &[String]) {
        let id = self.id();
        for line in self.0.guest_tail.lines() {
            tracing::warn!("guest id={id}: {line}");
        }
        for line in console {
            tracing::warn!("console id={id}: {line}");
        }
    }
}
