//! What a container uses, in the form that containerd reads on this host: that of the host's own cgroups.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use protocol::agent::ContainerStatsResponse;
use sandbox::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// There on a host whose cgroups are of version 2.
const V2_MARK: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What is said for "no limit", as runc's shim does.
const NO_LIMIT: u64 = u64::MAX;

/// The figures as containerd on this host expects them.
///
/// # Errors
/// They can't be encoded.
pub fn for_this_host(used: &ContainerStatsResponse) -> Result<Any> {
    let (url, bytes) = if Path::new(V2_MARK).exists() {
        ("io.containerd.cgroups.v2.Metrics", unified(used).write_to_bytes())
    } else {
        ("io.containerd.cgroups.v1.Metrics", legacy(used).write_to_bytes())
    };
    let failed = |e| Error::system("encode metrics")(std::io::Error::other(e));
    Ok(Any { type_url: url.into(), value: bytes.map_err(failed)?, ..Default::default() })
}

fn get(table: &HashMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or_default()
}

fn limit(table: &HashMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(NO_LIMIT)
}

/// Version 2: the kernel's names are the message's.
fn unified(used: &ContainerStatsResponse) -> v2::Metrics {
    let single = |name| get(&used.single, name);
    let cpu = |name| get(&used.cpu, name);
    let event = |name| get(&used.memory_events, name);
    let io = used.io.iter().map(|device| v2::IOEntry {
        major: device.major,
        minor: device.minor,
        rbytes: get(&device.values, "rbytes"),
        wbytes: get(&device.values, "wbytes"),
        rios: get(&device.values, "rios"),
        wios: get(&device.values, "wios"),
        ..Default::default()
    });
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: single("pids.current"),
            // containerd's own word for "no limit" here.
            limit: single("pids.max"),
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: cpu("usage_usec"),
            user_usec: cpu("user_usec"),
            system_usec: cpu("system_usec"),
            nr_periods: cpu("nr_periods"),
            nr_throttled: cpu("nr_throttled"),
            throttled_usec: cpu("throttled_usec"),
            ..Default::default()
        }),
        memory: MessageField::some(memory(used)),
        io: MessageField::some(v2::IOStat { usage: io.collect(), ..Default::default() }),
        memory_events: MessageField::some(v2::MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(used: &ContainerStatsResponse) -> v2::MemoryStat {
    let stat = |name: &str| get(&used.memory, name);
    // The kernel counts refaults and activations apart for anonymous and file pages.
    let both = |name: &str| {
        // The guest's own figures: whatever they are, adding them must not end the shim.
        stat(&format!("{name}_anon")).saturating_add(stat(&format!("{name}_file")))
    };
    v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: get(&used.single, "memory.current"),
        usage_limit: limit(&used.single, "memory.max"),
        swap_usage: get(&used.single, "memory.swap.current"),
        swap_limit: limit(&used.single, "memory.swap.max"),
        ..Default::default()
    }
}

/// Version 1, as far as the guest's counters go.
fn legacy(used: &ContainerStatsResponse) -> v1::Metrics {
    let single = |name| get(&used.single, name);
    let cpu = |name| get(&used.cpu, name);
    let stat = |name: &str| get(&used.memory, name);
    let nanoseconds = |name| cpu(name).saturating_mul(1000);
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: single("pids.current"),
            limit: single("pids.max"),
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: nanoseconds("usage_usec"),
                kernel: nanoseconds("system_usec"),
                user: nanoseconds("user_usec"),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: cpu("nr_periods"),
                throttled_periods: cpu("nr_throttled"),
                throttled_time: nanoseconds("throttled_usec"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache: stat("file"),
            rss: stat("anon"),
            mapped_file: stat("file_mapped"),
            dirty: stat("file_dirty"),
            writeback: stat("file_writeback"),
            pg_fault: stat("pgfault"),
            pg_maj_fault: stat("pgmajfault"),
            inactive_anon: stat("inactive_anon"),
            active_anon: stat("active_anon"),
            inactive_file: stat("inactive_file"),
            active_file: stat("active_file"),
            unevictable: stat("unevictable"),
            total_inactive_file: stat("inactive_file"),
            usage: MessageField::some(v1::MemoryEntry {
                limit: limit(&used.single, "memory.max"),
                usage: single("memory.current"),
                max: single("memory.peak"),
                failcnt: get(&used.memory_events, "max"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used() -> ContainerStatsResponse {
        let table =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        ContainerStatsResponse {
            cpu: table(&[("usage_usec", 7), ("user_usec", 5)]),
            memory: table(&[
                ("anon", 11),
                ("workingset_refault_anon", 1),
                ("workingset_refault_file", 2),
            ]),
            memory_events: table(&[("oom_kill", 1)]),
            single: table(&[("memory.current", 13), ("pids.current", 3), ("pids.max", 9)]),
            ..Default::default()
        }
    }

    #[test]
    fn version_2_has_the_kernels_figures_and_says_where_there_is_no_limit() {
        let metrics = unified(&used());
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (7, 5));
        assert_eq!((metrics.memory.anon, metrics.memory.workingset_refault), (11, 3));
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (13, NO_LIMIT));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 9));
        assert_eq!(metrics.memory_events.oom_kill, 1);
    }

    #[test]
    fn no_figure_of_a_hostile_guest_is_too_large() {
        let mut used = used();
        for table in [&mut used.cpu, &mut used.memory, &mut used.single] {
            for value in table.values_mut() {
                *value = u64::MAX;
            }
        }
        assert_eq!(unified(&used).memory.workingset_refault, u64::MAX);
        assert_eq!(legacy(&used).cpu.usage.total, u64::MAX);
    }

    #[test]
    fn version_1_counts_nanoseconds() {
        let metrics = legacy(&used());
        assert_eq!(metrics.cpu.usage.total, 7000);
        assert_eq!((metrics.memory.rss, metrics.memory.usage.usage), (11, 13));
        assert_eq!(metrics.pids.current, 3);
    }
}
