//! The ttrpc service: from a request to a call and back, nothing else.

use crate::containers::{Containers, blocking};
use crate::error::AgentError;
use crate::guest::busy;
use crate::guest::capacity;
use crate::guest::cgroup::Cgroup;
use crate::guest::clock;
use crate::guest::network;
use crate::guest::sandbox;
use crate::guest::sysctl;
use crate::io::resolver::Resolver;
use crate::io::transport::Transport;
use crate::work::deadline::Deadline;
use async_trait::async_trait;
use protocol::agent::{
    Clock, ClockSet, ContainerRef, ContainerStateResponse, ContainerStatsResponse,
    CreateContainerRequest, Empty, ExecProcessRequest, ListProcessesRequest, ListProcessesResponse,
    OutOfMemory, ProcessExit, ProcessRef, ProcessStarted, ResizeTerminalRequest, SandboxCapacity,
    SetSysctlsRequest, SetupNetworkRequest, SetupSandboxRequest, SignalProcessRequest,
    UpdateContainerRequest, WaitBusyResponse, WaitOutOfMemoryRequest,
};
use protocol::agent_ttrpc::{Agent, create_agent};
use std::future::Future;
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use ttrpc::r#async::{Server, TtrpcContext};

/// How long the answer to Shutdown has to get out before the machine ends.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// Serves until the value is dropped. A request has at most 4 MiB (ttrpc's limit).
///
/// # Errors
/// When the port cannot be listened on.
pub async fn start(transport: &Transport, containers: Arc<Containers>) -> anyhow::Result<Server> {
    let listener = transport.listen(protocol::ports::RPC)?.into_raw_fd();
    // SAFETY: the descriptor is a listening socket of that family, and this is its only owner.
    let server = unsafe {
        match transport {
            Transport::Vsock => Server::new().add_vsock_listener(listener),
            Transport::Unix(_) => Server::new().add_unix_listener(listener),
        }
    }?;
    let service = Service { containers, resolver: Resolver::new(transport.clone()) };
    let mut server = server.register_service(create_agent(Arc::new(service)));
    server.start().await?;
    Ok(server)
}

struct Service {
    containers: Arc<Containers>,
    resolver: Resolver,
}

/// Runs `work` to its end even when the caller goes away in the middle.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::spawn(work).await.map_err(|error| AgentError::Internal(error.to_string()))?
}

/// The caller's.
fn deadline(context: &TtrpcContext) -> Deadline {
    Deadline::of_caller(Duration::from_nanos(context.timeout_nano.try_into().unwrap_or(0)))
}

fn started(pid: i32) -> ProcessStarted {
    ProcessStarted { pid: pid as u32, ..ProcessStarted::default() }
}

#[async_trait]
impl Agent for Service {
    async fn setup_sandbox(
        &self,
        _: &TtrpcContext,
        request: SetupSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        if !request.rlimits_json.is_empty() {
            self.containers.set_limits(&request.rlimits_json)?;
        }
        blocking(move || sandbox::setup(&request)).await?;
        Ok(Empty::default())
    }

    async fn set_clock(&self, _: &TtrpcContext, request: Clock) -> ttrpc::Result<ClockSet> {
        clock::told(request.ns).map_err(|e| AgentError::io("setting the clock", e))?;
        Ok(ClockSet { again: !clock::is_followed(), ..ClockSet::default() })
    }

    async fn resize_sandbox(
        &self,
        _: &TtrpcContext,
        request: SandboxCapacity,
    ) -> ttrpc::Result<SandboxCapacity> {
        Ok(blocking(move || capacity::resize(&request)).await?)
    }

    async fn setup_network(
        &self,
        _: &TtrpcContext,
        request: SetupNetworkRequest,
    ) -> ttrpc::Result<Empty> {
        blocking(move || network::setup(&request.interfaces)).await?;
        Ok(Empty::default())
    }

    async fn serve_resolver(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let listening = self.resolver.listen().await;
        listening.map_err(|e| AgentError::io("listening where the resolver is asked", e))?;
        Ok(Empty::default())
    }

    async fn set_sysctls(
        &self,
        _: &TtrpcContext,
        request: SetSysctlsRequest,
    ) -> ttrpc::Result<Empty> {
        let set = move || sysctl::set_of_pod(&request.sysctls).map_err(AgentError::Invalid);
        blocking(set).await?;
        Ok(Empty::default())
    }

    async fn create_container(
        &self,
        context: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<ProcessStarted> {
        let (containers, deadline) = (Arc::clone(&self.containers), deadline(context));
        Ok(started(whole(async move { containers.create(request, deadline).await }).await?))
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<Empty> {
        self.containers.start(&request.container_id)?;
        Ok(Empty::default())
    }

    async fn exec_process(
        &self,
        context: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ProcessStarted> {
        let (containers, deadline) = (Arc::clone(&self.containers), deadline(context));
        Ok(started(whole(async move { containers.exec(request, deadline).await }).await?))
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.containers.signal(&request)?;
        Ok(Empty::default())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<ProcessExit> {
        let exit = self.containers.wait(&request.container_id, &request.exec_id).await?;
        let oom_kills = if request.exec_id.is_empty() {
            Cgroup::of(&request.container_id).oom_kills().unwrap_or_default()
        } else {
            0
        };
        Ok(ProcessExit {
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            oom_kills,
            ..ProcessExit::default()
        })
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<OutOfMemory> {
        let WaitOutOfMemoryRequest { container_id, seen, .. } = request;
        let kills = self.containers.wait_out_of_memory(&container_id, seen).await?;
        Ok(OutOfMemory { kills, ..OutOfMemory::default() })
    }

    async fn wait_busy(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<WaitBusyResponse> {
        let runnable =
            busy::wait().await.map_err(|e| AgentError::io("watching /proc/pressure/cpu", e))?;
        Ok(WaitBusyResponse { runnable, ..WaitBusyResponse::default() })
    }

    async fn container_state(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ContainerStateResponse> {
        Ok(self.containers.state(&request.container_id)?)
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let (id, after) = (&request.container_id, request.after);
        let (processes, more) = self.containers.processes(id, after).await?;
        Ok(ListProcessesResponse { processes, more, ..ListProcessesResponse::default() })
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<Empty> {
        let containers = Arc::clone(&self.containers);
        whole(async move { containers.set_paused(&request.container_id, true).await }).await?;
        Ok(Empty::default())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<Empty> {
        let containers = Arc::clone(&self.containers);
        whole(async move { containers.set_paused(&request.container_id, false).await }).await?;
        Ok(Empty::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = Arc::clone(&self.containers);
        let UpdateContainerRequest { container_id, resources_json, .. } = request;
        whole(async move { containers.update(&container_id, &resources_json).await }).await?;
        Ok(Empty::default())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        Ok(self.containers.stats(&request.container_id).await?)
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        let ResizeTerminalRequest { container_id, exec_id, width, height, .. } = request;
        self.containers.resize(&container_id, &exec_id, width, height)?;
        Ok(Empty::default())
    }

    async fn delete_process(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<Empty> {
        self.containers.delete_process(&request.container_id, &request.exec_id)?;
        Ok(Empty::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<Empty> {
        let containers = Arc::clone(&self.containers);
        whole(async move { containers.delete(&request.container_id).await }).await?;
        Ok(Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        tracing::info!("shutting down");
        blocking(|| {
            if let Err(error) = Cgroup::of_all().kill() {
                tracing::warn!(%error, "killing the containers");
            }
            sandbox::sync();
            Ok(())
        })
        .await?;
        // The answer says that nothing is lost any more, so it goes out first: the host need not wait
        // for the rest.
        tokio::spawn(async {
            tokio::time::sleep(ANSWER_TIME).await;
            sandbox::power_off();
        });
        Ok(Empty::default())
    }
}
