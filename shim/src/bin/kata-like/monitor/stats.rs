//! What a container uses, in the shape of `runc events --stats` (runc's types/events.go).

use protocol::agent::ContainerStatsResponse;
use sandbox::overhead::{Overhead, Usage};
use serde_json::{Value, json};

/// Microseconds to nanoseconds.
const MICRO: u64 = 1000;

/// The container's figures.
pub(super) fn as_runc(used: &ContainerStatsResponse) -> Value {
    let of = |map: &std::collections::HashMap<String, u64>, name: &str| {
        map.get(name).copied().unwrap_or_default()
    };
    let cpu = |name: &str| of(&used.cpu, name);
    let single = |name: &str| of(&used.single, name);
    let memory = |usage: u64, limit: u64, failures: u64| json!({ "usage": usage, "limit": limit, "failcnt": failures });
    json!({
        "cpu": {
            "usage": {
                "total": cpu("usage_usec").saturating_mul(MICRO),
                "kernel": cpu("system_usec").saturating_mul(MICRO),
                "user": cpu("user_usec").saturating_mul(MICRO),
            },
            "throttling": {
                "periods": cpu("nr_periods"),
                "throttledPeriods": cpu("nr_throttled"),
                "throttledTime": cpu("throttled_usec").saturating_mul(MICRO),
            },
        },
        "memory": {
            "cache": of(&used.memory, "file"),
            "usage": memory(single("memory.current"), single("memory.max"), of(&used.memory_events, "max")),
            "swap": memory(single("memory.swap.current"), single("memory.swap.max"), 0),
            "raw": used.memory,
        },
        "pids": { "current": single("pids.current"), "limit": single("pids.max") },
        "blkio": {
            "ioServiceBytesRecursive": used.io.iter().flat_map(|device| {
                [("rbytes", "Read"), ("wbytes", "Write")].map(|(name, op)| json!({
                    "major": device.major, "minor": device.minor, "op": op, "value": of(&device.values, name),
                }))
            }).collect::<Vec<_>>(),
        },
        // For `events`, which tells of each kill once; runc has no such figure.
        "oomKills": of(&used.memory_events, "oom_kill"),
    })
}

/// What the sandbox takes of the host besides, of which runc has no figures.
pub(super) fn of_sandbox(overhead: &Overhead) -> Value {
    json!({
        "monitor": process(&overhead.owner),
        "vmm": process(&overhead.vmm),
        "fileServer": process(&overhead.file_server),
    })
}

/// One process of the sandbox: processor time in nanoseconds, memory in bytes.
fn process(usage: &Usage) -> Value {
    let Usage { user, kernel, guest, memory, guest_memory } = usage;
    let [user, kernel, guest] = [user, kernel, guest].map(|time| time.as_nanos() as u64);
    json!({
        "cpu": { "kernel": kernel, "user": user, "guest": guest },
        "memory": { "own": memory, "guest": guest_memory },
    })
}
