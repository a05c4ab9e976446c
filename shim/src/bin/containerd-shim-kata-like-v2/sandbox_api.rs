//! Of containerd's sandbox API (version 1) one method, for those who account for what they run: what the sandbox
//! itself takes of the host. containerd's own task metrics are the container's alone.

use crate::task::convert::{rpc_error, timestamp};
use crate::task::metrics;
use crate::task::service::TaskService;
use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{SandboxMetricsRequest, SandboxMetricsResponse};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use protobuf::MessageField;
use protocol::agent::ContainerStatsResponse;
use sandbox::overhead::{self, Overhead};
use sandbox::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;
use ttrpc::asynchronous::{Service, TtrpcContext};

/// The method that is served; the server answers Unimplemented to the others.
const METRICS: &str = "SandboxMetrics";

/// The service, by its name.
pub fn service(task: Arc<TaskService>) -> HashMap<String, Service> {
    let mut services = create_sandbox(Arc::new(Metrics(task)));
    for service in services.values_mut() {
        service.methods.retain(|name, _| name == METRICS);
    }
    services
}

struct Metrics(Arc<TaskService>);

impl Metrics {
    fn answer(&self, id: &str) -> Result<SandboxMetricsResponse> {
        let sandbox = self.0.sandbox()?;
        if id != sandbox.id() {
            return Err(Error::NotFound(format!("sandbox {id}")));
        }
        let data = metrics::for_this_host(&in_the_kernels_words(&sandbox.overhead()?))?;
        let mut response = SandboxMetricsResponse::new();
        let metrics = response.mut_metrics();
        metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metrics.id = id.into();
        metrics.data = MessageField::some(data);
        Ok(response)
    }
}

#[async_trait]
impl Sandbox for Metrics {
    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.answer(&request.sandbox_id).map_err(rpc_error)
    }
}

/// The figures as a cgroup of the sandbox's processes would tell them: `shmem` is the guest's memory.
fn in_the_kernels_words(overhead: &Overhead) -> ContainerStatsResponse {
    let used = overhead.total();
    let table = |rows: &[(&str, u64)]| rows.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
    let user = (used.user + used.guest).as_micros() as u64;
    let kernel = used.kernel.as_micros() as u64;
    let cpu = [("usage_usec", user + kernel), ("user_usec", user), ("system_usec", kernel)];
    let single = [
        ("memory.current", used.memory + used.guest_memory),
        ("pids.current", overhead::PROCESSES),
    ];
    ContainerStatsResponse {
        cpu: table(&cpu),
        memory: table(&[("anon", used.memory), ("shmem", used.guest_memory)]),
        single: table(&single),
        ..Default::default()
    }
}
