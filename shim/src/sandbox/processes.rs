//! Starting and steering processes.

use super::Sandbox;
use super::abandon::abandon;
use super::containers::named;
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::io::{OpenIo, Stdio};
use crate::milestone;
use crate::oci::plan::{self, Update};
use crate::sandbox::event::Exit;
use crate::sandbox::table::Phase;
use protocol::agent::ContainerStatsResponse;
use std::collections::HashMap;
use std::sync::Arc;

/// An exec that is registered and not yet started.
pub(super) struct PendingExec {
    process_json: Vec<u8>,
    stdio: Stdio,
    sub_cgroup: String,
}

/// A process to be added to a container.
#[derive(Debug)]
pub struct NewExec<'a> {
    /// An OCI `process` object.
    pub process_json: &'a [u8],
    /// Its standard streams.
    pub stdio: Stdio,
    /// Where below the container's cgroup it goes, `/`: that itself; empty: wherever it can.
    pub sub_cgroup: String,
}

/// Registered execs by container and exec id.
pub(super) type PendingExecs = HashMap<(String, String), PendingExec>;

/// Exit status of an exec that could not be started.
const NOT_STARTED: u32 = 126;

impl Sandbox {
    /// Starts a container's init; gives the host pid that stands for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], it was started before, or the agent fails.
    pub async fn start(&self, id: &str) -> Result<u32> {
        self.table().starting(id, "")?;
        let (sandbox, id) = (self.clone(), id.to_owned());
        Self::detached(async move {
            let started = sandbox.run_init(&id).await;
            milestone::mark("container-started", &id);
            match started {
                Ok(()) => Ok(sandbox.table().started(&id, "")),
                Err(error) => {
                    sandbox.table().start_failed(&id, "", NOT_STARTED);
                    Err(error)
                }
            }
        })
        .await
    }

    async fn run_init(&self, id: &str) -> Result<()> {
        let io = self.table().process(id, "")?.io.clone();
        if let Some(io) = io {
            io.begin_input().await?;
        }
        let agent = self.agent().await?;
        self.look_at_network_again(&agent).await?;
        self.serve_resolver(&agent, id).await;
        agent.start_container(id).await.map_err(named("start"))?;
        let hooks = self.table().hooks(id);
        let started = hooks.started().await;
        if started.is_err() {
            self.kill_init(&agent, id, true).await?;
        }
        started
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`], the container has ended, or it asks for what can't be.
    pub fn add_exec(&self, id: &str, exec: &str, new: NewExec<'_>) -> Result<()> {
        protocol::ids::check(exec).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        let NewExec { process_json, stdio, sub_cgroup } = new;
        let process_json = plan::exec(process_json)?;
        self.table().add_exec(id, exec)?;
        let pending = PendingExec { process_json, stdio, sub_cgroup };
        self.pending_execs().insert((id.into(), exec.into()), pending);
        Ok(())
    }

    /// Starts a registered exec; gives the host pid that stands for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], it was started before, or the agent fails.
    pub async fn start_exec(&self, id: &str, exec: &str) -> Result<u32> {
        self.table().starting(id, exec)?;
        let (sandbox, id, exec) = (self.clone(), id.to_owned(), exec.to_owned());
        Self::detached(async move {
            match sandbox.run_exec(&id, &exec).await {
                Ok(agent) => {
                    let pid = sandbox.table().started(&id, &exec);
                    milestone::mark("exec-started", &id);
                    tokio::spawn(sandbox.watch_exec(agent, id, exec));
                    Ok(pid)
                }
                Err(error) => {
                    sandbox.table().start_failed(&id, &exec, NOT_STARTED);
                    Err(error)
                }
            }
        })
        .await
    }

    async fn run_exec(&self, id: &str, exec: &str) -> Result<Agent> {
        let pending = self.pending_execs().remove(&(id.to_owned(), exec.to_owned()));
        let PendingExec { process_json, stdio, sub_cgroup } =
            pending.ok_or_else(|| Error::NotFound(format!("exec {exec} of container {id}")))?;
        tracing::debug!("exec {exec} of {id}: opening its streams");
        let plain_newlines = stdio.plain_newlines;
        let open = OpenIo::open(stdio).await?;
        let agent = self.agent().await?;
        let (mut numbers, streams) = self.streams(open.wanted()).await?;
        numbers.plain_newlines = plain_newlines;
        let io = Arc::new(open.join(streams));
        tracing::debug!("exec {exec} of {id}: asking the agent");
        // Known before the input flows: the call that ends it may come before the agent's answer.
        self.table().process(id, exec)?.set_io(io.clone());
        io.begin_input().await?;
        let started = agent.exec(id, exec, (process_json, sub_cgroup), numbers).await;
        if let Err(Error::Deadline { .. }) = started {
            abandon(&agent, id, exec).await;
        }
        let pid = started.map_err(named("exec"))?;
        tracing::debug!("exec {exec} of {id}: process {pid} of the guest");
        Ok(agent)
    }

    /// Drops what was kept to start an exec that is deleted; all of a container's if `exec` is empty.
    pub(super) fn forget_execs(&self, id: &str, exec: &str) {
        self.pending_execs().retain(|(i, e), _| i != id || !(exec.is_empty() || e == exec));
    }

    async fn watch_exec(self, agent: Agent, id: String, exec: String) {
        let exit = match agent.wait(&id, &exec).await {
            Ok((status, _)) => Exit::now(status),
            Err(error) => {
                tracing::warn!("waiting for exec {exec} of {id}: {}", error.chain());
                Exit::now(Exit::LOST)
            }
        };
        self.table().exited(&id, &exec, exit);
    }

    /// Stops every process of a created or running container where it is, or lets them go on.
    ///
    /// # Errors
    /// [`Error::NotFound`], it has ended, or is not paused, or the agent fails.
    pub async fn set_paused(&self, id: &str, pause: bool) -> Result<()> {
        self.table().pausing(id, pause)?;
        let (sandbox, id) = (self.clone(), id.to_owned());
        Self::detached(async move {
            let done = async {
                let agent = sandbox.agent().await?;
                let done = if pause { agent.pause(&id).await } else { agent.resume(&id).await };
                if let (true, Err(Error::Deadline { .. })) = (pause, &done)
                    // Nobody could let it go on otherwise.
                    && let Err(error) = agent.resume(&id).await
                {
                    tracing::error!("container {id} may be paused: {}", error.chain());
                }
                done.map_err(named(if pause { "pause" } else { "resume" }))
            };
            let done = done.await;
            match done {
                Ok(()) => sandbox.table().paused(&id, pause),
                Err(_) => sandbox.table().not_paused(&id),
            }
            done
        })
        .await
    }

    /// Sets those limits of a container that are named in an OCI `linux.resources` object. The machine grows
    /// before and gives back after, as far as they ask for it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names what can't be had; [`Error::NotFound`]; the agent fails.
    pub async fn update(&self, id: &str, resources_json: &[u8]) -> Result<()> {
        self.state(id, "")?;
        let created = self.created(id);
        let Update { asked, for_guest } = plan::update(resources_json, &created)?;
        let planned = serde_json::to_vec(&for_guest)
            .map_err(|e| Error::InvalidArgument(format!("update: linux.resources: {e}")))?;
        let number = self.table().number(id)?;
        let (sandbox, id) = (self.clone(), id.to_owned());
        Self::detached(async move {
            let agent = sandbox.agent().await?;
            let before = sandbox.make_room(&agent, number, created.part, &asked).await?;
            match agent.update(&id, planned).await {
                Ok(()) => {
                    sandbox.follow_update(number, before).await;
                    Ok(())
                }
                Err(error) => {
                    sandbox.give_back(number, before).await;
                    Err(named("update")(error))
                }
            }
        })
        .await
    }

    /// What a container uses, as the guest counts it.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the agent fails.
    pub async fn stats(&self, id: &str) -> Result<ContainerStatsResponse> {
        self.state(id, "")?;
        self.agent().await?.stats(id).await
    }

    /// Sets the size of a process's terminal. Before an exec is started there is none to set.
    ///
    /// # Errors
    /// [`Error::NotFound`], it has ended, or the agent fails.
    pub async fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        match self.state(id, exec)?.phase {
            Phase::Stopped(_) => {
                return Err(Error::FailedPrecondition("process already finished".into()));
            }
            Phase::Created if !exec.is_empty() => return Ok(()),
            _ => {}
        }
        self.agent().await?.resize(id, exec, width, height).await
    }

    /// Lets a process's standard input end when its last writer has closed it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn close_stdin(&self, id: &str, exec: &str) -> Result<()> {
        self.table().process(id, exec)?.close_stdin();
        Ok(())
    }
}
