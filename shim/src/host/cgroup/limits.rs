//! What a sandbox's cgroup is limited to, as the kernel's files and as systemd's properties.

use super::bounds::Bounds;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};
use std::collections::HashMap;

/// What the sandbox may take of the host. None: no limit is set, or it stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processor time.
    pub cpu: Bandwidth,
    /// From 1 to 10,000; more is the most.
    pub weight: Option<u64>,
    /// Whether it runs only when nobody else does.
    pub idle: Option<bool>,
    /// By numbers of the host's.
    pub bounds: Bounds,
}

/// Processor time by periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Microseconds of it in each period. None: no limit.
    pub quota: Option<u64>,
    /// Microseconds.
    pub period: u64,
    /// Microseconds that may be saved up from periods before, at most the quota.
    pub burst: u64,
}

impl Default for Bandwidth {
    /// The kernel's.
    fn default() -> Self {
        Self { quota: None, period: 100_000, burst: 0 }
    }
}

/// Which limits have been asked for: one that never was is left as somebody has set it in a cgroup that was there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named {
    memory: bool,
    cpu: bool,
    /// Of `cpu.max.burst`.
    pub burst: bool,
}

impl Named {
    /// With those that are asked for now.
    pub fn and(self, limits: &Limits) -> Self {
        Self {
            memory: self.memory || limits.memory.is_some(),
            cpu: self.cpu || Bandwidth { burst: 0, ..limits.cpu } != Bandwidth::default(),
            burst: self.burst || limits.cpu.burst > 0,
        }
    }
}

/// For the cgroup's files.
pub(super) fn as_files(
    limits: &Limits,
    named: Named,
) -> Result<LinuxResources, oci_spec::OciSpecError> {
    let mut files = HashMap::new();
    let mut set = |name: &str, value: String| drop(files.insert(name.to_owned(), value));
    if named.memory {
        set("memory.max", limits.memory.map_or("max".into(), |bytes| bytes.to_string()));
    }
    let Bandwidth { quota, period, .. } = limits.cpu;
    let quota = quota.map_or("max".into(), |quota| quota.to_string());
    if named.cpu {
        set("cpu.max", format!("{quota} {period}"));
    }
    // One that is idle takes no weight.
    if let Some(weight) = limits.weight
        && limits.idle != Some(true)
    {
        set("cpu.weight", weight.clamp(1, MOST_WEIGHT).to_string());
    }
    // Set before the files.
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(idle) = limits.idle {
        cpu = cpu.idle(i64::from(idle));
    }
    LinuxResourcesBuilder::default().cpu(cpu.build()?).unified(files).build()
}

const MOST_WEIGHT: u64 = 10_000;
pub(super) const MOST_SHARES: u64 = 262_144;

/// The weight for so many shares, as newer runc, crun and systemd's own manager have it: 1024 are 100. None: 0.
pub fn weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        MOST_SHARES.. => MOST_WEIGHT,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).min(MOST_WEIGHT)
        }
    }
}

/// The fewest shares that are worth a weight: the manager for systemd takes no weights.
pub(super) fn shares(weight_wanted: u64) -> u64 {
    let (mut too_few, mut enough) = (0, MOST_SHARES);
    while enough - too_few > 1 {
        let middle = u64::midpoint(too_few, enough);
        if weight(middle) < weight_wanted { too_few = middle } else { enough = middle }
    }
    enough
}

/// For the unit's properties.
pub(super) fn as_resources(limits: &Limits) -> Result<LinuxResources, oci_spec::OciSpecError> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let memory = LinuxMemoryBuilder::default().limit(limits.memory.map_or(-1, number)).build()?;
    let mut cpu = LinuxCpuBuilder::default();
    let Bandwidth { quota, period, .. } = limits.cpu;
    if let Some(quota) = quota {
        cpu = cpu.quota(number(quota)).period(period);
    }
    if let Some(weight) = limits.weight {
        cpu = cpu.shares(shares(weight));
    }
    let [cpus, mems] = limits.bounds.lists();
    if !cpus.is_empty() {
        cpu = cpu.cpus(cpus);
    }
    if !mems.is_empty() {
        cpu = cpu.mems(mems);
    }
    LinuxResourcesBuilder::default().memory(memory).cpu(cpu.build()?).build()
}
