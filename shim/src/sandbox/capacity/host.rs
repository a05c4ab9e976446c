//! The host's cgroup of a sandbox, whose limits follow the machine's size.

use super::Capacity;
use super::limits::{Limits, PERIOD};
use crate::error::{Error, Result};
use crate::host::cgroup;
use protocol::machine::Size;

/// The weight of a container that names none.
const DEFAULT_WEIGHT: u64 = 100;

/// The least part of a processor that the host leaves a sandbox, as one over this: the guest enforces smaller quotas,
/// and has to answer within the agent's deadlines all the same.
const LEAST_CPU: u64 = 10;

/// What our processes need of the host's memory besides the guest's, MiB; and of page tables and the like, one over
/// this part of the guest's.
const OVERHEAD_MIB: u64 = 64;
const OVERHEAD_PART: u64 = 64;

impl Capacity {
    /// What the sandbox's processes may take of the host with a machine of this size. Memory: all that the machine
    /// has and what it costs, so that a guest whose page cache fills its memory costs the VMM nothing.
    pub(super) fn of_host(&self, size: Size) -> cgroup::Limits {
        let all = || self.limits.values();
        let guest = self.initial_mib + size.added_mib;
        let memory = (guest + guest / OVERHEAD_PART + OVERHEAD_MIB) << 20;
        let sum = |of: fn(&Limits) -> u64| all().map(of).fold(0, u64::saturating_add);
        let (quota, burst, period) = match &all().collect::<Vec<_>>()[..] {
            [one] => (one.quota, one.burst, one.period()),
            // Of several the sum, in the kernel's own period; what is saved up may be spent at once.
            _ => (sum(Limits::cpus).saturating_mul(PERIOD / 1000), sum(|l| l.burst), PERIOD),
        };
        // One without a quota: there is none for all.
        let quota = all().all(|l| l.quota > 0).then_some(quota).filter(|&quota| quota > 0);
        let quota = quota.map(|quota| quota.max(period / LEAST_CPU));
        let burst = quota.map_or(burst, |quota| burst.min(quota));
        let cpu = cgroup::Bandwidth { quota, period, burst };
        let weight = all().any(|l| l.weight > 0).then(|| {
            let default = |l: &Limits| if l.weight == 0 { DEFAULT_WEIGHT } else { l.weight };
            all().map(default).fold(0, u64::saturating_add)
        });
        cgroup::Limits {
            memory: all().any(|l| l.memory > 0).then_some(memory),
            cpu,
            weight,
            idle: all().any(|l| l.idle.is_some()).then(|| all().all(|l| l.idle == Some(true))),
            bounds: cgroup::Bounds::of_all(
                &all().filter_map(|l| l.bounds.as_ref()).collect::<Vec<_>>(),
            ),
        }
    }
}

/// What those above the sandbox's cgroup leave it: an engine changes a pod's before its containers'.
pub(super) async fn look_up(capacity: &mut Capacity) {
    let Some(cgroup) = capacity.cgroup.clone() else { return };
    let read = tokio::task::spawn_blocking(move || cgroup.ceiling()).await;
    capacity.ceiling = read.unwrap_or_default();
}

/// Sets what the host gives our processes when the machine has this size.
pub(super) async fn limit_host(capacity: &Capacity, size: Size) -> Result<()> {
    let Some(cgroup) = capacity.cgroup.clone() else { return Ok(()) };
    let limits = capacity.of_host(size);
    // Maybe by way of systemd, which may take its time.
    let set = tokio::task::spawn_blocking(move || cgroup.limit(&limits)).await;
    set.map_err(|e| Error::system("set the limits of a cgroup")(std::io::Error::other(e)))?
}

/// The same for the size that it has, where no failure can be told.
pub(super) async fn settle_host(capacity: &Capacity) {
    if let Err(error) = limit_host(capacity, capacity.now).await {
        tracing::warn!("{}", error.chain());
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::capacity;
    use super::*;
    use crate::sandbox::table::Number;
    use oci_spec::runtime::LinuxResources;

    #[test]
    fn the_host_gives_the_machine_and_its_cost_and_the_processors_of_all() {
        let host = |limits: &[&str]| {
            let capacity = capacity(limits);
            capacity.of_host(capacity.needed())
        };
        let mib = |mib: u64| Some(mib << 20);
        assert_eq!(host(&[]), cgroup::Limits::default());
        assert_eq!(host(&["{}"]), cgroup::Limits::default());
        let limited = r#"{"memory": {"limit": 134217728}, "cpu": {"quota": 75000, "period": 50000, "shares": 512}}"#;
        let one = cgroup::Limits {
            memory: mib(256 + 4 + 64),
            cpu: cgroup::Bandwidth { quota: Some(75_000), period: 50_000, burst: 0 },
            weight: Some(59),
            idle: None,
            bounds: cgroup::Bounds::default(),
        };
        assert_eq!(host(&[limited]), one);
        let two = cgroup::Limits {
            memory: mib(384 + 6 + 64),
            cpu: cgroup::Bandwidth { quota: Some(300_000), period: 100_000, burst: 0 },
            weight: Some(2 * 59),
            idle: None,
            bounds: cgroup::Bounds::default(),
        };
        assert_eq!(host(&[limited, limited]), two);
        // One without limits: there is none for both.
        let mixed = host(&[limited, "{}"]);
        assert_eq!(
            (mixed.memory, mixed.cpu.quota, mixed.weight),
            (mib(256 + 4 + 64), None, Some(59 + 100))
        );
        let tiny = host(&[r#"{"cpu": {"quota": 1000, "period": 100000}}"#]);
        assert_eq!(tiny.cpu.quota, Some(10_000), "the guest sees to the rest");
        let period = host(&[r#"{"cpu": {"period": 900000}}"#]);
        assert_eq!(period.cpu, cgroup::Bandwidth { quota: None, period: 900_000, burst: 0 });
        let saving = r#"{"cpu": {"quota": 40000, "burst": 30000}}"#;
        assert_eq!(host(&[saving]).cpu.burst, 30_000);
        assert_eq!(
            (host(&[saving, saving]).cpu.quota, host(&[saving; 2]).cpu.burst),
            (Some(80_000), 60_000)
        );
        let more = r#"{"cpu": {"quota": 20000, "burst": 30000}}"#;
        assert_eq!(host(&[more]).cpu.burst, 20_000, "the kernel takes no more");
        assert_eq!(host(&[r#"{"cpu": {"burst": 5000}}"#]).cpu.burst, 5000);
        let idle = r#"{"cpu": {"idle": 1}}"#;
        assert_eq!(host(&[idle]).idle, Some(true));
        assert_eq!(host(&[idle, "{}"]).idle, Some(false));
        let bound = host(&[r#"{"cpu": {"cpus": "0"}}"#]).bounds;
        assert_eq!(bound.cpus(), Some(1));
        let with = |other: Limits| {
            let mut capacity = capacity(&[r#"{"cpu": {"cpus": "0"}}"#]);
            capacity.set(Number(7), Some(other));
            capacity.of_host(capacity.needed()).bounds
        };
        let other = Limits::default().changed(&LinuxResources::default());
        assert_eq!(with(other), cgroup::Bounds::default());
        assert_eq!(with(Limits::default()), bound, "a pause container");
    }
}
