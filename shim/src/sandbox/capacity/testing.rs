//! Machines for tests.

use super::Capacity;
use super::limits::Limits;
use crate::sandbox::table::Number;
use protocol::machine::Size;

/// One that starts with a vCPU and 128 MiB, with containers of these limits.
pub(super) fn capacity(limits: &[&str]) -> Capacity {
    let max = Size { vcpus: 4, added_mib: 1000 };
    let limits = limits.iter().enumerate().map(|(n, json)| {
        (Number(n as u64), Limits::default().changed(&serde_json::from_str(json).unwrap()))
    });
    Capacity {
        initial_vcpus: 1,
        initial_mib: 128,
        max,
        limits: limits.collect(),
        ..Capacity::default()
    }
}

/// The vCPUs that it needs for them, and the MiB to be added.
pub(super) fn needed(limits: &[&str]) -> (u32, u64) {
    let Size { vcpus, added_mib } = capacity(limits).needed();
    (vcpus, added_mib)
}
