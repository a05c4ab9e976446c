//! The methods of the task API. No state but what containerd wants to hear again.

use super::convert::{exec_process, rootfs, rpc_error, status, stdio, timestamp};
use super::events::{Containers, Said};
use super::metrics;
use super::slot::Slot;
use super::wanted::{Wanted, after_creates};
use crate::bootstrap::config_path;
use crate::socket::Socket;
use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::TaskIO;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message};
use sandbox::bundle::read_spec;
use sandbox::event::Exit;
use sandbox::{
    Error, NewContainer, NewExec, Phase, Result, Sandbox, SandboxSpec, blocking, milestone, plan,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, watch};
use ttrpc::asynchronous::TtrpcContext;

/// Between two tries to delete what is given up.
const BETWEEN_DELETES: Duration = Duration::from_millis(100);

/// Serves one sandbox.
pub struct TaskService {
    slot: Arc<Slot>,
    containers: Containers,
    socket: Socket,
    finished: Arc<Notify>,
    /// Held for the length of a Create: its caller may go away, and Delete and Shutdown come meanwhile.
    creating: Arc<Mutex<()>>,
    /// Whose creates there are, the one under way and those that wait.
    wanted: Wanted,
    /// There was one.
    called: AtomicBool,
    /// The sandbox API has told what the sandbox is.
    told: AtomicBool,
    /// It has started it as well: it is there until that API ends it.
    held: AtomicBool,
}

impl TaskService {
    /// `finished` is told when the shim is to end.
    pub fn new(slot: Slot, containers: Containers, socket: Socket, finished: Arc<Notify>) -> Self {
        Self {
            slot: Arc::new(slot),
            containers,
            socket,
            finished,
            creating: Arc::default(),
            called: AtomicBool::new(false),
            told: AtomicBool::new(false),
            held: AtomicBool::new(false),
            wanted: Wanted::default(),
        }
    }

    /// The sandbox.
    ///
    /// # Errors
    /// There is none, for the reason told.
    pub fn sandbox(&self) -> Result<Sandbox> {
        self.slot.get()
    }

    /// Makes the sandbox that the sandbox API tells of.
    ///
    /// # Errors
    /// There is one already, or it can't be launched.
    pub async fn launch_told(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        self.called.store(true, Ordering::Relaxed);
        let launched = self.slot.launch_told(spec).await?;
        self.told();
        Ok(launched)
    }

    /// It may take long from here to the start.
    pub fn told(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// From here on only [`TaskService::end_told`] ends it, or the shutdown of a task of the sandbox's own id: containerd
    /// calls that when it finds, at a start, a sandbox that it knows nothing of.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Ends the sandbox, and then the shim.
    pub async fn end_told(&self) {
        self.held.store(false, Ordering::Relaxed);
        self.end(true).await;
    }

    /// The sandbox's id.
    pub fn id(&self) -> &str {
        self.slot.id()
    }

    /// Ends the sandbox, which nobody finds any more.
    pub async fn stop(&self) {
        self.socket.withdraw();
        self.slot.stop().await;
    }

    /// Until there has been no container for so long, or, of what the sandbox API has told of, no start: containerd has
    /// forgotten this shim.
    pub async fn abandoned(&self, without_container: Duration, without_start: Duration) {
        let mut empty_since = Instant::now();
        loop {
            let told = self.told.load(Ordering::Relaxed);
            let patience = if told { without_start } else { without_container };
            if empty_since.elapsed() >= patience {
                return;
            }
            tokio::time::sleep(patience / 8).await;
            let creating = self.creating.try_lock().is_err();
            if creating
                || self.held.load(Ordering::Relaxed)
                || self.slot.get().is_ok_and(|sandbox| !sandbox.is_empty())
            {
                empty_since = Instant::now();
            }
        }
    }

    /// When containerd has not asked for a container and nobody has been connected for so long: it gave this shim up
    /// between its start and that.
    pub async fn uncalled(&self, patience: Duration, mut connected: watch::Receiver<usize>) {
        // Fails when nobody can connect any more: the server is ending.
        while connected.wait_for(|count| *count == 0).await.is_ok() {
            let back = connected.wait_for(|count| *count > 0);
            let outcome = tokio::time::timeout(patience, back).await.map(|back| back.is_ok());
            if self.called.load(Ordering::Relaxed) || outcome == Ok(false) {
                break;
            }
            if outcome.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    async fn create_task(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        self.called.store(true, Ordering::Relaxed);
        let begun = self.wanted.begin(&request.id);
        let creating = self.creating.clone().lock_owned().await;
        milestone::mark("create-call", &request.id);
        if !request.checkpoint.is_empty() {
            return Err(Error::Unimplemented("create from a checkpoint".into()));
        }
        let (slot, config) = (self.slot.clone(), request.options.as_ref().and_then(config_path));
        // A task of its own: one sandbox that makes room for another must not leave none.
        let found = tokio::spawn(async move { slot.get_with(config).await }).await;
        let ended_early =
            |e: tokio::task::JoinError| Error::Machine(format!("create ended early: {e}"));
        let sandbox = found.map_err(ended_early)??;
        let said = said(&request);
        let bundle = Path::new(&request.bundle).to_owned();
        let read = bundle.clone();
        let spec = blocking("read the bundle", &bundle, move || read_spec(&read)).await?;
        plan::shared::refuse_hosts_of_engines(&spec)?;
        let new = NewContainer {
            id: request.id.clone(),
            spec,
            bundle: request.bundle.clone().into(),
            rootfs: rootfs(&request),
            stdio: stdio(&said.io, &request.id, self.slot.namespace())?,
        };
        let id = request.id.clone();
        if sandbox.state(&id, "").is_err() {
            self.containers.forget(&id, "");
            self.containers.keep(&id, "", said);
        }
        // A task of its own: this call's future is dropped when its caller goes away.
        let created = tokio::spawn(async move {
            // Released in this order, so that who waits finds it done.
            let (_creating, begun) = (creating, begun);
            // From here on the sandbox itself knows of it.
            if begun.is_called_off() {
                let what = format!("the create of container {} was called off", new.id);
                return Err(Error::FailedPrecondition(what));
            }
            sandbox.create(new).await
        });
        let pid = created.await.map_err(ended_early)??;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    fn task_state(&self, id: &str, exec: &str) -> Result<StateResponse> {
        let state = self.slot.get()?.state(id, exec)?;
        let Said { io, .. } = self.containers.get(id, exec);
        let Said { bundle, .. } = self.containers.get(id, "");
        let exit = if let Phase::Stopped(exit) = state.phase { Some(exit) } else { None };
        Ok(StateResponse {
            id: if exec.is_empty() { id.into() } else { exec.into() },
            bundle,
            pid: state.pid,
            status: EnumOrUnknown::new(status(state.phase)),
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
            terminal: io.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: exec.into(),
            ..Default::default()
        })
    }

    fn add_exec(&self, request: ExecProcessRequest) -> Result<()> {
        let ExecProcessRequest { id, exec_id, terminal, stdin, stdout, stderr, spec, .. } = request;
        let json = exec_process(&spec.value, terminal)?;
        let io = TaskIO { stdin, stdout, stderr, terminal, ..Default::default() };
        let streams = stdio(&io, &id, self.slot.namespace())?;
        let new = NewExec { process_json: &json, stdio: streams, sub_cgroup: String::new() };
        self.slot.get()?.add_exec(&id, &exec_id, new)?;
        self.containers.keep(&id, &exec_id, Said { io, ..Said::default() });
        Ok(())
    }

    /// A container and its execs, each by the host's process that stands for it: engines look pids up on the host, where
    /// the guest's numbers are other processes'.
    async fn processes(&self, id: &str) -> Result<PidsResponse> {
        let sandbox = self.slot.get()?;
        let pid = sandbox.state(id, "")?.pid;
        let processes = sandbox.processes(id).await?;
        let execs = processes.iter().map(|process| &process.exec).filter(|exec| !exec.is_empty());
        let all = (!processes.is_empty()).then(String::new).into_iter().chain(execs.cloned());
        let info = |exec| ProcessInfo { pid, info: details(exec).into(), ..Default::default() };
        let processes = all.map(info).collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn delete_task(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        // After a failed launch containerd deletes the task that it could not create.
        let sandbox = self.slot.get().map_err(|_| Error::NotFound(format!("container {id}")))?;
        let (pid, exit) = match sandbox.delete(id, exec).await {
            // It may be on its way: containerd deletes what it stopped waiting for.
            Err(Error::NotFound(_)) if exec.is_empty() && self.wanted.has(id) => {
                self.undo_create(sandbox, id).await?
            }
            // Or have come between the two looks.
            Err(Error::NotFound(_)) if exec.is_empty() => sandbox.delete(id, exec).await?,
            outcome => outcome?,
        };
        self.containers.forget(id, exec);
        let (exit_status, exited_at) = (exit.status, Some(timestamp(exit.at)).into());
        Ok(DeleteResponse { pid, exit_status, exited_at, ..Default::default() })
    }

    /// Deletes what a create that is under way makes, whether or not the caller waits for it: containerd gives a delete a
    /// few seconds, and nobody deletes what comes later.
    async fn undo_create(&self, sandbox: Sandbox, id: &str) -> Result<(u32, Exit)> {
        self.wanted.call_off(id);
        sandbox.call_off(id);
        let made = id.to_owned();
        after_creates(&self.creating, async move { sandbox.delete(&made, "").await }).await
    }

    /// The bundle that a task was created with.
    pub fn bundle(&self, id: &str) -> Option<PathBuf> {
        let Said { bundle, .. } = self.containers.get(id, "");
        (!bundle.is_empty()).then(|| bundle.into())
    }

    /// Ends what containerd has forgotten: the task of this id, or with the sandbox API's sandbox all of it. Nothing, if it
    /// is not there.
    pub async fn give_up(&self, id: &str) {
        if self.told.load(Ordering::Relaxed) && id == self.id() {
            tracing::warn!("containerd has given up sandbox {id}: ending it");
            return self.end_told().await;
        }
        loop {
            match self.delete_task(id, "").await {
                Ok(_) => break,
                Err(Error::NotFound(_)) => return,
                Err(Error::FailedPrecondition(_)) => {}
                Err(error) => {
                    return tracing::error!("containerd has given up {id}: {}", error.chain());
                }
            }
            tracing::warn!("containerd has given up {id}: ending it");
            let Ok(sandbox) = self.sandbox() else { return };
            // It may have ended by now.
            let _ = sandbox.kill(id, "", libc::SIGKILL as u32, true).await;
            let _ = sandbox.wait(id, "").await;
            tokio::time::sleep(BETWEEN_DELETES).await;
        }
        self.end(false).await;
    }

    async fn set_paused(&self, id: &str, pause: bool) -> Result<Empty> {
        let sandbox = self.slot.get()?;
        // The library allows it, as runc's command line does; runc's shim does not.
        if pause && sandbox.state(id, "")?.phase == Phase::Created {
            return Err(Error::FailedPrecondition("cannot pause task in created state".into()));
        }
        sandbox.set_paused(id, pause).await?;
        Ok(Empty::new())
    }

    async fn metrics(&self, id: &str) -> Result<StatsResponse> {
        let used = self.slot.get()?.stats(id).await?;
        let stats = Some(metrics::for_this_host(&used)?).into();
        Ok(StatsResponse { stats, ..Default::default() })
    }

    /// A task of its own: whoever asked has a deadline, and what has begun to end must not stay half ended.
    async fn end(&self, now: bool) {
        // It comes after the delete of every task, and a pod is there without them as well.
        if self.held.load(Ordering::Relaxed) {
            return;
        }
        let (slot, socket) = (self.slot.clone(), self.socket.clone());
        let (creating, finished) = (self.creating.clone(), self.finished.clone());
        let ended = tokio::spawn(async move {
            if !now {
                drop(creating.lock().await);
            }
            // A shim that still has containers is shared with them, unless the call says now.
            if !now && slot.get().is_ok_and(|sandbox| !sandbox.is_empty()) {
                return;
            }
            socket.withdraw();
            slot.stop().await;
            finished.notify_one();
        });
        if let Err(error) = ended.await {
            tracing::error!("shutdown: {error}");
        }
    }
}

fn said(request: &CreateTaskRequest) -> Said {
    let CreateTaskRequest { bundle, rootfs, stdin, stdout, stderr, terminal, .. } = request.clone();
    let io = TaskIO { stdin, stdout, stderr, terminal, ..Default::default() };
    Said { bundle, rootfs, io }
}

/// Which exec a pid belongs to, in the form that containerd's clients read.
fn details(exec_id: String) -> Option<Any> {
    if exec_id.is_empty() {
        return None;
    }
    let details = ProcessDetails { exec_id, ..Default::default() };
    let type_url = "containerd.runc.v1.ProcessDetails".into();
    Some(Any { type_url, value: details.write_to_bytes().ok()?, ..Default::default() })
}

fn unimplemented<T>(method: &str, why: &str) -> ttrpc::Result<T> {
    Err(rpc_error(Error::Unimplemented(format!("kata-like has no {method}: {why}"))))
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        self.create_task(request).await.map_err(rpc_error)
    }

    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        self.task_state(&r.id, &r.exec_id).map_err(rpc_error)
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        let sandbox = self.slot.get().map_err(rpc_error)?;
        let pid = if r.exec_id.is_empty() {
            sandbox.start(&r.id).await
        } else {
            sandbox.start_exec(&r.id, &r.exec_id).await
        };
        Ok(StartResponse { pid: pid.map_err(rpc_error)?, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.add_exec(request).map_err(rpc_error)?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> ttrpc::Result<PidsResponse> {
        self.processes(&r.id).await.map_err(rpc_error)
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.slot.get().map_err(rpc_error)?;
        sandbox.kill(&r.id, &r.exec_id, r.signal, r.all).await.map_err(rpc_error)?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let sandbox = self.slot.get().map_err(rpc_error)?;
        let exit = sandbox.wait(&r.id, &r.exec_id).await.map_err(rpc_error)?;
        let (exit_status, exited_at) = (exit.status, Some(timestamp(exit.at)).into());
        Ok(WaitResponse { exit_status, exited_at, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        self.delete_task(&r.id, &r.exec_id).await.map_err(rpc_error)
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> ttrpc::Result<Empty> {
        if r.stdin {
            let sandbox = self.slot.get().map_err(rpc_error)?;
            sandbox.close_stdin(&r.id, &r.exec_id).map_err(rpc_error)?;
        }
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.slot.get().map_err(rpc_error)?;
        sandbox.resize(&r.id, &r.exec_id, r.width, r.height).await.map_err(rpc_error)?;
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let state = self.slot.get().and_then(|sandbox| sandbox.state(&r.id, ""));
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: state.map_or(0, |state| state.pid),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.held.load(Ordering::Relaxed) && r.id == self.id() {
            self.held
                .store(self.sandbox().is_ok_and(|sandbox| !sandbox.is_empty()), Ordering::Relaxed);
        }
        self.end(r.now).await;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> ttrpc::Result<Empty> {
        self.set_paused(&r.id, true).await.map_err(rpc_error)
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> ttrpc::Result<Empty> {
        self.set_paused(&r.id, false).await.map_err(rpc_error)
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        unimplemented("checkpoint", "a machine can't be saved yet")
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.slot.get().map_err(rpc_error)?;
        sandbox.update(&r.id, &r.resources.value).await.map_err(rpc_error)?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> ttrpc::Result<StatsResponse> {
        self.metrics(&r.id).await.map_err(rpc_error)
    }
}
