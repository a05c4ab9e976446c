//! What the sandbox itself takes of the host; containerd's own task metrics are the container's alone.

use crate::task::convert::timestamp;
use crate::task::metrics;
use containerd_shim_protos::sandbox_api::SandboxMetricsResponse;
use protobuf::MessageField;
use protocol::agent::ContainerStatsResponse;
use sandbox::overhead::Overhead;
use sandbox::{Result, Sandbox};
use std::time::SystemTime;

/// The answer, as a cgroup's.
///
/// # Errors
/// One of its processes has ended.
pub fn answer(sandbox: &Sandbox) -> Result<SandboxMetricsResponse> {
    let data = metrics::for_this_host(&in_the_kernels_words(&sandbox.overhead()?))?;
    let mut response = SandboxMetricsResponse::new();
    let metrics = response.mut_metrics();
    metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
    metrics.id = sandbox.id().into();
    metrics.data = MessageField::some(data);
    Ok(response)
}

/// The figures as a cgroup of the sandbox's processes would tell them: `shmem` is the guest's memory.
fn in_the_kernels_words(overhead: &Overhead) -> ContainerStatsResponse {
    let used = overhead.total();
    let table = |rows: &[(&str, u64)]| rows.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
    let user = (used.user + used.guest).as_micros() as u64;
    let kernel = used.kernel.as_micros() as u64;
    let cpu = [("usage_usec", user + kernel), ("user_usec", user), ("system_usec", kernel)];
    let single =
        [("memory.current", used.memory + used.guest_memory), ("pids.current", overhead.processes)];
    ContainerStatsResponse {
        cpu: table(&cpu),
        memory: table(&[("anon", used.memory), ("shmem", used.guest_memory)]),
        single: table(&single),
        ..Default::default()
    }
}
