//! What a container uses, in the shape of `runc events --stats` (runc's types/events.go): its members and their
//! order.

use protocol::agent::{ContainerStatsResponse, Pressure as Stalls};
use sandbox::overhead::{Overhead, Usage};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, HashMap};

/// Microseconds to nanoseconds.
const MICRO: u64 = 1000;

/// All that is told of a container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugePages>,
    /// The guest has none.
    intel_rdt: Nothing,
    /// The guest counts none by container: null.
    network_interfaces: Option<Nothing>,
    /// What its sandbox takes of the host besides, of which runc has no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sandbox: Option<OfSandbox>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Nothing {}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

/// Nanoseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct CpuUsage {
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Of version 1 of the cgroups only: always zero.
#[derive(Debug, Default, Serialize, Deserialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

/// Bytes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero", default)]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    /// Both of version 1 only.
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero", default)]
    current: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    limit: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero", default)]
    major: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    minor: u64,
    op: String,
    #[serde(skip_serializing_if = "is_zero", default)]
    value: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Psi {
    some: PsiData,
    full: PsiData,
}

/// Per cent, and microseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PsiData {
    #[serde(serialize_with = "average")]
    avg10: f64,
    #[serde(serialize_with = "average")]
    avg60: f64,
    #[serde(serialize_with = "average")]
    avg300: f64,
    total: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct HugePages {
    #[serde(skip_serializing_if = "is_zero", default)]
    usage: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfSandbox {
    monitor: OfProcess,
    vmm: OfProcess,
    file_server: OfProcess,
}

#[derive(Debug, Serialize, Deserialize)]
struct OfProcess {
    cpu: OfCpu,
    memory: OfMemory,
}

/// Nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
struct OfCpu {
    kernel: u64,
    user: u64,
    guest: u64,
}

/// Bytes.
#[derive(Debug, Serialize, Deserialize)]
struct OfMemory {
    own: u64,
    guest: u64,
}

/// Without a fraction that is none, as Go writes it.
#[allow(clippy::trivially_copy_pass_by_ref)] // As serde hands it over.
fn average<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde hands it over.
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The container's figures.
pub(super) fn as_runc(used: &ContainerStatsResponse) -> Stats {
    let cpu = |name: &str| get(&used.cpu, name);
    let single = |name: &str| get(&used.single, name);
    // What is said where there is none.
    let limit = |name: &str| used.single.get(name).copied().unwrap_or(u64::MAX);
    let (usage, swap) = (single("memory.current"), single("memory.swap.current"));
    let (memory_limit, swap_limit) = (limit("memory.max"), limit("memory.swap.max"));
    Stats {
        cpu: Cpu {
            usage: CpuUsage {
                total: cpu("usage_usec").saturating_mul(MICRO),
                kernel: cpu("system_usec").saturating_mul(MICRO),
                user: cpu("user_usec").saturating_mul(MICRO),
            },
            throttling: Throttling {
                periods: cpu("nr_periods"),
                throttled_periods: cpu("nr_throttled"),
                throttled_time: cpu("throttled_usec").saturating_mul(MICRO),
            },
            psi: psi(used, "cpu"),
        },
        memory: Memory {
            cache: get(&used.memory, "file"),
            usage: MemoryEntry {
                limit: memory_limit,
                usage,
                max: single("memory.peak"),
                failcnt: get(&used.memory_events, "max"),
            },
            // As in version 1, with the memory itself.
            swap: MemoryEntry {
                limit: swap_limit.saturating_add(if swap_limit == u64::MAX {
                    0
                } else {
                    memory_limit
                }),
                usage: swap.saturating_add(usage),
                ..MemoryEntry::default()
            },
            raw: used.memory.clone().into_iter().collect(),
            psi: psi(used, "memory"),
            ..Memory::default()
        },
        pids: Pids { current: single("pids.current"), limit: single("pids.max") },
        blkio: BlockIo {
            io_service_bytes_recursive: block_io(used, ["rbytes", "wbytes"]),
            io_serviced_recursive: block_io(used, ["rios", "wios"]),
            psi: psi(used, "io"),
        },
        hugetlb: used
            .huge_pages
            .iter()
            .map(|(size, pages)| {
                (size.clone(), HugePages { usage: pages.usage, failcnt: pages.failures })
            })
            .collect(),
        ..Stats::default()
    }
}

fn get(map: &HashMap<String, u64>, name: &str) -> u64 {
    map.get(name).copied().unwrap_or_default()
}

fn block_io(used: &ContainerStatsResponse, [read, write]: [&str; 2]) -> Vec<BlockIoEntry> {
    let entries = used.io.iter().flat_map(|device| {
        [(read, "Read"), (write, "Write")].map(|(name, op)| BlockIoEntry {
            major: device.major,
            minor: device.minor,
            op: op.to_owned(),
            value: get(&device.values, name),
        })
    });
    entries.collect()
}

fn psi(used: &ContainerStatsResponse, of: &str) -> Option<Psi> {
    let data = |kind: &str| used.pressure.get(&format!("{of} {kind}"));
    // JSON has no others, and the guest may say any.
    let finite = |average: f64| if average.is_finite() { average } else { 0.0 };
    let told = |stalls: &Stalls| PsiData {
        avg10: finite(stalls.avg10),
        avg60: finite(stalls.avg60),
        avg300: finite(stalls.avg300),
        total: stalls.total,
    };
    let some = told(data("some")?);
    Some(Psi { some, full: data("full").map(told).unwrap_or_default() })
}

/// What the sandbox's processes take.
pub(super) fn of_sandbox(overhead: &Overhead) -> OfSandbox {
    OfSandbox {
        monitor: process(&overhead.owner),
        vmm: process(&overhead.vmm),
        file_server: process(&overhead.file_server),
    }
}

fn process(usage: &Usage) -> OfProcess {
    let Usage { user, kernel, guest, memory, guest_memory } = usage;
    let [user, kernel, guest] = [user, kernel, guest].map(|time| time.as_nanos() as u64);
    OfProcess {
        cpu: OfCpu { kernel, user, guest },
        memory: OfMemory { own: *memory, guest: *guest_memory },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::agent::HugePages as GuestPages;

    #[test]
    fn the_order_and_the_omissions_are_runcs() {
        let mut used = ContainerStatsResponse::default();
        used.cpu.insert("usage_usec".into(), 3);
        used.single.extend([("memory.current".into(), 7), ("memory.swap.current".into(), 1)]);
        used.pressure.insert("io some".into(), Stalls { avg10: 1.5, ..Stalls::default() });
        used.huge_pages.insert("2MB".into(), GuestPages::default());
        let text = serde_json::to_string(&as_runc(&used)).unwrap();
        let none = u64::MAX;
        let empty = r#"{"limit":0,"failcnt":0}"#;
        let zero = r#"{"avg10":0,"avg60":0,"avg300":0,"total":0}"#;
        let expected = [
            r#"{"cpu":{"usage":{"total":3000,"kernel":0,"user":0},"throttling":{}},"#,
            r#""cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"#,
            r#""memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"#,
            r#""sched_load_balance":0,"sched_relax_domain_level":0},"#,
            &format!(r#""memory":{{"usage":{{"limit":{none},"usage":7,"failcnt":0}},"#),
            &format!(
                r#""swap":{{"limit":{none},"usage":8,"failcnt":0}},"kernel":{empty},"kernelTCP":{empty}}},"#
            ),
            r#""pids":{},"#,
            r#""blkio":{"psi":{"some":{"avg10":1.5,"avg60":0,"avg300":0,"total":0},"full":"#,
            &format!(
                r#"{zero}}}}},"hugetlb":{{"2MB":{{"failcnt":0}}}},"intel_rdt":{{}},"network_interfaces":null}}"#
            ),
        ];
        assert_eq!(text, expected.concat());
        // It travels from the monitor to the command.
        let back: Stats = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    #[test]
    fn what_a_guest_says_that_is_no_number_travels_as_zero() {
        let mut used = ContainerStatsResponse::default();
        let stalls =
            Stalls { avg10: f64::NAN, avg60: f64::INFINITY, avg300: 1e300, ..Stalls::default() };
        used.pressure.insert("cpu some".into(), stalls);
        let text = serde_json::to_string(&as_runc(&used)).unwrap();
        assert!(text.contains(r#""avg10":0,"avg60":0,"#), "{text}");
        assert!(serde_json::from_str::<Stats>(&text).is_ok(), "{text}");
    }
}
