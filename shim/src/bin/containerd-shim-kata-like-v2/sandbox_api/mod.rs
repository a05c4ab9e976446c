//! containerd's sandbox API (version 1): a pod that no container stands for, which is there from its create to its
//! shutdown whatever containers it has meanwhile.

mod config;
mod metrics;
mod oci;
mod update;

use crate::task::convert::{rpc_error, timestamp};
use crate::task::service::TaskService;
use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox as SandboxApi, create_sandbox};
use protobuf::well_known_types::any::Any;
use sandbox::event::Exit;
use sandbox::{Error, Result, Sandbox, blocking, milestone};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use ttrpc::asynchronous::{Service, TtrpcContext};

/// As the CRI calls a pod's states.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The service, by its name.
pub fn service(task: Arc<TaskService>) -> HashMap<String, Service> {
    let pod = Arc::new(Pod { task, life: Arc::default() });
    let mut services = create_sandbox(pod.clone());
    for service in services.values_mut() {
        service.methods.insert(update::METHOD.into(), Box::new(update::Update(pod.clone())));
    }
    services
}

/// The one of this shim.
struct Pod {
    task: Arc<TaskService>,
    life: Arc<Mutex<Life>>,
}

/// What became of it so far.
#[derive(Debug, Default)]
struct Life {
    /// What the runtime's users are told that it is.
    spec: Option<Any>,
    started: Option<SystemTime>,
    ended: Option<Exit>,
}

impl Life {
    fn of(life: &Mutex<Self>) -> MutexGuard<'_, Self> {
        life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    fn check(&self, id: &str) -> Result<()> {
        let is_ours = id == self.task.id();
        is_ours.then_some(()).ok_or_else(|| Error::NotFound(format!("sandbox {id}")))
    }

    fn sandbox(&self, id: &str) -> Result<Sandbox> {
        self.check(id)?;
        self.task.sandbox()
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        Life::of(&self.life)
    }

    async fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        let id = request.sandbox_id;
        self.check(&id)?;
        milestone::mark("sandbox-create-call", &id);
        let config = config::read(request.options.as_ref())?;
        let network = Some(request.netns_path).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (of_config, named) = (config.clone(), id.clone());
        let read = move || config::spec(&of_config, &named, network);
        let spec = blocking("read the host's", Path::new("/etc"), read).await?;
        let told = oci::told(&spec, &config, &id)?;
        let sandbox = self.task.launch_told(&spec).await?;
        self.life().spec = Some(told);
        let life = self.life.clone();
        tokio::spawn(async move {
            let wanted = sandbox.ended().await;
            let exit = Exit::now(if wanted { 0 } else { Exit::LOST });
            Life::of(&life).ended.get_or_insert(exit);
            // What it has of the host goes at once: nobody stops what has ended.
            sandbox.stop().await;
        });
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<StartSandboxResponse> {
        let sandbox = self.sandbox(id)?;
        sandbox.set_up().await?;
        // Not when the caller has gone meanwhile: containerd does not stop what it has not seen start.
        self.task.hold();
        milestone::mark("sandbox-started", id);
        let mut life = self.life();
        let at = *life.started.get_or_insert_with(SystemTime::now);
        Ok(StartSandboxResponse {
            pid: sandbox.pid(),
            created_at: Some(timestamp(at)).into(),
            spec: life.spec.clone().into(),
            ..Default::default()
        })
    }

    fn status(&self, id: &str) -> Result<SandboxStatusResponse> {
        let sandbox = self.sandbox(id)?;
        let life = self.life();
        let is_ready = life.started.is_some() && life.ended.is_none();
        Ok(SandboxStatusResponse {
            sandbox_id: id.into(),
            pid: if life.ended.is_none() { sandbox.pid() } else { 0 },
            state: if is_ready { READY } else { NOT_READY }.into(),
            created_at: life.started.map(timestamp).into(),
            exited_at: life.ended.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn wait(&self, id: &str) -> Result<WaitSandboxResponse> {
        let wanted = self.sandbox(id)?.ended().await;
        let exit = Exit::now(if wanted { 0 } else { Exit::LOST });
        let exit = *self.life().ended.get_or_insert(exit);
        let (exit_status, exited_at) = (exit.status, Some(timestamp(exit.at)).into());
        Ok(WaitSandboxResponse { exit_status, exited_at, ..Default::default() })
    }

    async fn stop(&self, id: &str) -> Result<()> {
        self.check(id)?;
        // One that was never launched is stopped.
        if let Ok(sandbox) = self.task.sandbox() {
            // A caller that goes away does not leave it half done.
            let stopped = tokio::spawn(async move { sandbox.stop().await }).await;
            stopped.map_err(|e| Error::system("stop the sandbox")(std::io::Error::other(e)))?;
        }
        Ok(())
    }

    fn ping(&self, id: &str) -> Result<()> {
        self.sandbox(id)?;
        match self.life().ended {
            None => Ok(()),
            Some(_) => {
                Err(Error::Ended("it was stopped, or one of its processes has ended".into()))
            }
        }
    }
}

#[async_trait]
impl SandboxApi for Pod {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.create(request).await.map_err(rpc_error)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.start(&request.sandbox_id).await.map_err(rpc_error)
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        self.check(&request.sandbox_id).map_err(rpc_error)?;
        let mut response = PlatformResponse::new();
        let platform = response.mut_platform();
        (platform.os, platform.architecture) = ("linux".into(), "amd64".into());
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.stop(&request.sandbox_id).await.map_err(rpc_error)?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        self.wait(&request.sandbox_id).await.map_err(rpc_error)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.status(&request.sandbox_id).map_err(rpc_error)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.ping(&request.sandbox_id).map_err(rpc_error)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id).map_err(rpc_error)?;
        self.task.end_told().await;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let sandbox = self.sandbox(&request.sandbox_id).map_err(rpc_error)?;
        metrics::answer(&sandbox).map_err(rpc_error)
    }
}

#[cfg(test)]
mod tests;
