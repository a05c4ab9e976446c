//! Making and deleting containers.

use super::abandon::abandon;
use super::attachments::{for_all, memory, storages, sub_paths, timed};
use super::stand_ins::{self, StandIn};
use super::{NewContainer, ProcessState, Sandbox, files, resolver};
use crate::error::{Error, Result};
use crate::guest::agent::{Agent, InGuest, Process, StreamNumbers};
use crate::host::blocking::blocking;
use crate::host::disk::ThisHost;
use crate::host::storage;
use crate::host::undo::Undo;
use crate::io::{GuestStreams, OpenIo, ProcessIo};
use crate::milestone;
use crate::oci::hooks::{ContainerHooks, Inside};
use crate::oci::plan::disks::Writes;
use crate::oci::plan::{self, Plan, RootfsMount};
use crate::oci::pod::Part;
use crate::oci::seccomp;
use crate::sandbox::event::Exit;
use crate::sandbox::table::{Number, Phase};
use oci_spec::runtime::{LinuxResources, Spec};
use protocol::ports::{self, StreamPreamble};
use serde::Deserialize as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// How long output may stand still before a delete goes on without the rest of it.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long a container that never ran may take to die when it is deleted.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long execs may take to end after their container's init has.
const EXEC_GRACE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Makes a container; its init process waits to be started. Gives the host pid that stands for it.
    ///
    /// # Errors
    /// The id is taken, the spec asks for what can't be, or the machine or the agent fails. Nothing is left then.
    pub async fn create(&self, new: NewContainer) -> Result<u32> {
        protocol::ids::check(&new.id).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        let called_off = self.table().reserve(&new.id)?;
        let number = self.table().number(&new.id)?;
        let sandbox = self.clone();
        // Boxed: a spec is large, and callers hold this in their own futures.
        let work = Box::pin(async move {
            let id = new.id.clone();
            let made = Box::pin(sandbox.make(new, number, &called_off)).await;
            if made.is_err() {
                sandbox.detach_disks(&id).await;
                sandbox.forget(&id);
                sandbox.give_back(number, None).await;
                // Last: what is forgotten shall not be the next one's of this id.
                sandbox.table().release(&id);
            }
            made
        });
        Self::detached(work).await
    }

    /// Lets a [`Sandbox::create`] that waits for the readers of its output fail: its caller has gone.
    pub fn call_off(&self, id: &str) {
        self.table().call_off(id);
    }

    /// Where what a container writes goes to a disk by default, it is one of as many as the machine has room for.
    async fn plan(
        &self,
        id: &str,
        bundle: &Path,
        spec: Spec,
        rootfs: Vec<RootfsMount>,
    ) -> Result<Plan> {
        let pid = self.pid();
        let plan = async |spec, rootfs, writes| {
            let id = id.to_owned();
            blocking("look at what is mounted for", bundle, move || {
                plan::container(&id, spec, rootfs, writes, pid, &ThisHost)
            })
            .await
        };
        let by_default = matches!(self.0.writes, Writes::ToDiskInPods(_));
        let again = by_default.then(|| (spec.clone(), rootfs.clone()));
        let planned = plan(spec, rootfs, self.0.writes).await?;
        match again {
            Some((spec, rootfs)) if !self.has_room(planned.disks.disks.len()) => {
                // That there is no room is said when the disks are attached.
                Ok(plan(spec, rootfs, Writes::ToSnapshot).await.unwrap_or(planned))
            }
            _ => Ok(planned),
        }
    }

    async fn make(&self, new: NewContainer, number: Number, called_off: &Notify) -> Result<u32> {
        let NewContainer { id, mut spec, bundle, rootfs, stdio } = new;
        if let Some(pod) = &self.0.told {
            files::show(&self.0.paths, &pod.files, &mut spec)?;
        }
        let resolv_conf = resolver::file_of(&spec);
        let rootfs = rootfs_or_directory(rootfs, &spec);
        let plan = Box::pin(self.plan(&id, &bundle, spec, rootfs)).await?;
        let pids = self.pids_of(&id, &plan)?;
        let mut left_out = plan.left_out.clone();
        let is_hosts =
            |at: &str| at.strip_prefix("/linux/resources").is_some_and(plan::is_hosts_limit);
        left_out.retain(|at| self.0.cgroup.is_none() || !is_hosts(at));
        if !left_out.is_empty() {
            let left_out = left_out.join(", ");
            tracing::info!("{id}: config.json: of no use in the guest, left out: {left_out}");
        }
        if let Some(profile) = plan.spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) {
            // In runc's words.
            tracing::debug!("seccomp filter flags: {}", seccomp::flags(profile));
        }
        let plain_newlines = stdio.plain_newlines;
        // The guest boots meanwhile.
        let open_io = async {
            tokio::select! {
                open = OpenIo::open(stdio) => open,
                () = called_off.notified() => {
                    Err(Error::FailedPrecondition(format!("the create of container {id} was called off")))
                }
            }
        };
        let (undo, disks, open) = tokio::join!(
            self.prepare_storage(&id, &bundle, &plan),
            self.attach_disks(&id, &plan.disks.disks),
            open_io
        );
        let undo = undo?;
        let part = plan.part;
        let in_guest = async {
            let (disks, open) = (disks?, open?);
            // Not before: who waits for readers of the output would keep it in the sandbox's cgroup.
            let stand_in = self.stand_in(&id, part).await?;
            let pid = stand_in.as_ref().map_or(self.pid(), StandIn::pid);
            milestone::mark("storage-ready", &id);
            let agent = self.agent().await?;
            let asked = LinuxResources::deserialize(&plan.resources).unwrap_or_default();
            self.make_room(&agent, number, part, &asked).await?;
            let (mut numbers, streams) = self.streams(open.wanted()).await?;
            numbers.plain_newlines = plain_newlines;
            let io = open.join(streams);
            let storages = storages(&id, &plan.disks).into_iter().chain(memory(&plan.volumes));
            let storages = storages
                .chain(sub_paths(&plan.sub_paths))
                .chain(for_all(&plan.shared_binds))
                .chain(timed(&plan.timed))
                .collect();
            let has = InGuest { disks, storages, pids };
            self.note_limits(&id, part, plan.resources, &plan.disks.disks);
            if part != Part::Pause {
                let process = plan.spec.process().as_ref();
                self.note_oom_score(
                    &id,
                    process.and_then(oci_spec::runtime::Process::oom_score_adj),
                );
            }
            let Plan {
                hooks,
                spec,
                spec_json,
                annotations,
                rootfs,
                network,
                net_devices,
                sysctls,
                ..
            } = plan;
            // Of a root on a disk the guest alone knows files.
            let read_only = !rootfs.is_empty()
                && spec
                    .root()
                    .as_ref()
                    .and_then(oci_spec::runtime::Root::readonly)
                    .unwrap_or_default();
            let hooks =
                ContainerHooks { hooks, id: id.clone(), pid, bundle, annotations, noted: true };
            let made = async {
                hooks.creating().await?;
                let hooked = hooks.has_before();
                self.become_pod(&agent, network.as_deref(), &net_devices, &sysctls, hooked).await?;
                if hooks.has_inside() {
                    let root = self.0.paths.container(&id).join("rootfs");
                    let network = self.network_namespace().await;
                    hooks.inside(&Inside { root, network }).await?;
                }
                agent
                    .create_container(&id, spec_json, numbers, has)
                    .await
                    .map_err(named("create"))?;
                if read_only && let Err(error) = self.make_root_read_only(&id).await {
                    abandon(&agent, &id, "").await;
                    return Err(error);
                }
                Ok(())
            };
            if let Err(error) = made.await {
                if let Error::Deadline { .. } = error {
                    abandon(&agent, &id, "").await;
                }
                hooks.gone().await;
                return Err(error);
            }
            Ok((agent, pid, io, hooks, stand_in))
        };
        let (agent, pid, io, hooks, stand_in) = match in_guest.await {
            Ok(made) => made,
            Err(error) => {
                for (what, error) in undo.run_aside().await {
                    tracing::warn!("undo {what}: {error}");
                }
                return Err(error);
            }
        };
        if part == Part::Pause {
            self.forward_localhost().await;
        }
        self.0.resolver.note(&id, resolv_conf);
        milestone::mark("container-created", &id);
        self.table().created(&id, pid, io, undo, hooks);
        tokio::spawn(self.clone().watch_memory(agent.clone(), id.clone()));
        tokio::spawn(self.clone().watch_init(agent, id, stand_in));
        Ok(pid)
    }

    /// After the guest has made what mounts need, as runc does it; from here on it is not left to the guest.
    async fn make_root_read_only(&self, id: &str) -> Result<()> {
        let (server, id) = (self.0.helpers[1], id.to_owned());
        let root = self.0.paths.container(&id).join("rootfs");
        let work = move || storage::make_root_read_only(server, &id);
        blocking("make read-only", &root, work).await
    }

    async fn prepare_storage(&self, id: &str, bundle: &Path, plan: &Plan) -> Result<Undo> {
        self.show_to_all(&plan.shared_binds).await?;
        let (paths, id) = (self.0.paths.clone(), id.to_owned());
        let (rootfs, binds) = (plan.rootfs.clone(), plan.binds.clone());
        let work = move || {
            let mut undo = Undo::new();
            storage::add_container(&paths, &id, &rootfs, &binds, &mut undo).map(|()| undo)
        };
        blocking("mount what is asked for by", bundle, work).await
    }

    /// New streams to the guest for those that are `wanted`.
    pub(super) async fn streams(&self, wanted: [bool; 3]) -> Result<(StreamNumbers, GuestStreams)> {
        let (stdin, stdin_stream) = self.stream(wanted[0]).await?;
        let (stdout, stdout_stream) = self.stream(wanted[1]).await?;
        let (stderr, stderr_stream) = self.stream(wanted[2]).await?;
        let streams =
            GuestStreams { stdin: stdin_stream, stdout: stdout_stream, stderr: stderr_stream };
        Ok((StreamNumbers { stdin, stdout, stderr, plain_newlines: false }, streams))
    }

    async fn stream(&self, wanted: bool) -> Result<(u64, Option<UnixStream>)> {
        if !wanted {
            return Ok((0, None));
        }
        let number = self.0.next_stream.fetch_add(1, Ordering::Relaxed);
        let mut stream = self.0.vm.connect(ports::STDIO).await?;
        let preamble = StreamPreamble(number).to_bytes();
        stream.write_all(&preamble).await.map_err(Error::system("write to a stream"))?;
        Ok((number, Some(stream)))
    }

    /// Sees a container's init end, and tells it after the ends of its execs.
    async fn watch_init(self, agent: Agent, id: String, stand_in: Option<StandIn>) {
        let waiting = agent.wait(&id, "");
        tokio::pin!(waiting);
        let ended = tokio::select! {
            ended = &mut waiting => ended,
            () = stand_ins::ended(stand_in.as_ref()) => {
                tracing::info!("the process that stands for container {id} was killed, and so is the container");
                // It may have ended meanwhile, which is told below.
                let _ = self.kill_init(&agent, &id, false).await;
                waiting.await
            }
        };
        let (status, oom_kills) = match ended {
            Ok(exit) => exit,
            Err(error) => {
                // With the sandbox's end every container's is told; this is then too late and ignored.
                self.0.vm.stop(format!("waiting for container {id}: {}", error.chain()));
                return;
            }
        };
        milestone::mark("exit-seen", &id);
        let exit = Exit::now(status);
        self.table().out_of_memory(&id, oom_kills);
        let execs = self.table().ending(&id);
        let all = async {
            for mut exec in execs {
                let _ = exec.wait_for(Option::is_some).await;
            }
        };
        if tokio::time::timeout(EXEC_GRACE, all).await.is_err() {
            tracing::warn!("execs of container {id} did not end with it");
        }
        // Who hears of the exit finds the process gone, as on runc.
        if let Some(stand_in) = stand_in {
            stand_in.end().await;
        }
        self.table().exited(&id, "", exit);
    }

    /// Deletes a container that has ended or never ran, or an exec. Gives its pid and its exit.
    ///
    /// # Errors
    /// [`Error::NotFound`], or it runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(u32, Exit)> {
        let phase = self.table().deleting(id, exec)?;
        let number = self.table().number(id)?;
        let (sandbox, id, exec) = (self.clone(), id.to_owned(), exec.to_owned());
        Self::detached(async move {
            if exec.is_empty() {
                sandbox.delete_container(&id, phase).await;
            } else {
                sandbox.delete_exec(&id, &exec).await;
            }
            sandbox.forget_execs(&id, &exec);
            let deleted = sandbox.table().deleted(&id, &exec);
            if sandbox.is_empty() && sandbox.0.told.is_none() {
                // Nothing comes after the last container: the machine may go while the caller reads this.
                tokio::spawn(async move { sandbox.stop().await });
            } else if exec.is_empty() {
                tokio::spawn(async move { sandbox.give_back(number, None).await });
            }
            Ok(deleted)
        })
        .await
    }

    async fn delete_container(&self, id: &str, phase: Phase) {
        milestone::mark("delete", id);
        if phase == Phase::Created {
            self.kill_created(id).await;
        }
        self.drain(id, "").await;
        // With the last container goes the guest, which syncs before; file systems on disks shall be unmounted.
        let lasts = self.has_lasting_disks(id);
        let gone_with_guest = self.0.told.is_none() && self.table().is_last(id) && !lasts;
        if !gone_with_guest
            && let Ok(agent) = self.agent().await
            && let Err(error) = agent.delete_container(id, lasts).await
        {
            tracing::warn!("delete container {id} in the guest: {}", error.chain());
        }
        if !gone_with_guest {
            self.detach_disks(id).await;
        }
        self.forget(id);
        let hooks = self.table().hooks(id);
        let undo = self.table().take_undo(id);
        if let Some(undo) = undo {
            for (what, error) in undo.run_aside().await {
                tracing::warn!("delete container {id}: {what}: {error}");
            }
        }
        hooks.gone().await;
        milestone::mark("deleted", id);
    }

    async fn kill_created(&self, id: &str) {
        let Ok(agent) = self.agent().await else { return };
        if let Err(error) = agent.signal(id, "", libc::SIGKILL as u32, true).await {
            tracing::warn!("kill container {id}: {}", error.chain());
        }
        if tokio::time::timeout(KILL_PATIENCE, self.wait(id, "")).await.is_err() {
            tracing::warn!("container {id} does not die");
        }
    }

    async fn delete_exec(&self, id: &str, exec: &str) {
        self.drain(id, exec).await;
        let Ok(agent) = self.agent().await else { return };
        match agent.delete_exec(id, exec).await {
            // An exec that never ran is unknown to the agent.
            Err(error) if error.code() != ttrpc::Code::NOT_FOUND => {
                tracing::warn!("delete exec {exec} of {id} in the guest: {}", error.chain());
            }
            _ => {}
        }
    }

    /// Waits until what a process has written is handed over.
    async fn drain(&self, id: &str, exec: &str) {
        let io = self.table().process(id, exec).ok().and_then(|p| p.io.take());
        if let Some(io) = io
            && !ProcessIo::drained(&io, DRAIN_PATIENCE).await
        {
            tracing::warn!("container {id} {exec}: nobody reads the rest of its output");
        }
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the agent fails.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>> {
        if let ProcessState { phase: Phase::Stopped(_), .. } = self.state(id, "")? {
            return Ok(Vec::new());
        }
        self.agent().await?.processes(id).await
    }
}

/// What the snapshotter gave, or the directory that the spec names.
fn rootfs_or_directory(
    rootfs: Vec<RootfsMount>,
    spec: &oci_spec::runtime::Spec,
) -> Vec<RootfsMount> {
    if !rootfs.is_empty() {
        return rootfs;
    }
    let directory = spec.root().as_ref().map(|root| root.path().clone());
    directory.iter().map(|directory| bind(directory)).collect()
}

fn bind(directory: &Path) -> RootfsMount {
    RootfsMount {
        source: directory.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Default::default()
    }
}

/// Puts the words before an agent's error that containerd's users know.
pub(super) fn named(action: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::Agent { code, message } => {
            Error::Agent { code, message: format!("OCI runtime {action} failed: {message}") }
        }
        other => other,
    }
}
