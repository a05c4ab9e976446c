//! What one container, or all of a pod, may use: as a specification, an update or a pod's size says it.

use crate::host::cgroup;
use crate::sandbox::{PodResize, PodSize};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

/// The kernel's period of a CPU quota, microseconds, where none is named.
pub(super) const PERIOD: u64 = 100_000;

/// What one container may use; 0: no limit, so nothing that the machine would grow for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct Limits {
    pub(super) memory: u64,
    pub(super) quota: u64,
    pub(super) period: u64,
    /// Saved up from periods before, microseconds.
    pub(super) burst: u64,
    pub(super) weight: u64,
    /// Whether it is to run only when nobody else does, if that was said.
    pub(super) idle: Option<bool>,
    /// By numbers of the host's, of a container that uses any of it.
    pub(super) bounds: Option<cgroup::Bounds>,
}

impl Limits {
    /// These with those changed that are named.
    pub(super) fn changed(mut self, to: &LinuxResources) -> Self {
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        if let Some(limit) = to.memory().as_ref().and_then(LinuxMemory::limit) {
            self.memory = positive(limit);
        }
        if let Some(cpu) = to.cpu() {
            self.quota = cpu.quota().map_or(self.quota, positive);
            self.period = cpu.period().unwrap_or(self.period);
            self.burst = cpu.burst().unwrap_or(self.burst);
            self.weight = cpu.shares().map_or(self.weight, cgroup::weight);
            self.idle = cpu.idle().map_or(self.idle, |idle| Some(idle == 1));
        }
        self.bounds = Some(self.bounds.unwrap_or_default().changed(to));
        let unified = to.unified().iter().flatten();
        unified.fold(self, |limits, (file, value)| limits.with_file(file, value.trim()))
    }

    /// With what a file of the cgroup says, by which the guest goes; not with what it will refuse.
    fn with_file(mut self, file: &str, value: &str) -> Self {
        let number = |text: &str| if text == "max" { Some(0) } else { text.parse().ok() };
        match file {
            "memory.max" => self.memory = number(value).unwrap_or(self.memory),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                self.quota = words.next().and_then(number).unwrap_or(self.quota);
                self.period = words.next().and_then(number).unwrap_or(self.period);
            }
            "cpu.max.burst" => self.burst = value.parse().unwrap_or(self.burst),
            "cpu.weight" => self.weight = value.parse().unwrap_or(self.weight),
            "cpu.idle" => self.idle = Some(value == "1"),
            _ => {}
        }
        self
    }

    /// These of a pod, with those changed that are named.
    pub(super) fn resized(self, to: PodResize) -> Self {
        Self {
            memory: to.memory.unwrap_or(self.memory),
            quota: to.cpu_quota.unwrap_or(self.quota),
            period: to.cpu_period.unwrap_or(self.period),
            ..self
        }
    }

    /// These of a pod, whose size is the sum of its containers', once one of them has other limits than before. What has
    /// no limit before or after says nothing.
    pub(super) fn moved(self, before: &Self, after: &Self) -> Self {
        let moved = |all: u64, before: u64, after: u64| {
            let counts = all > 0 && before > 0 && after > 0;
            // Not to 0, which would be no limit.
            if counts { all.saturating_sub(before).saturating_add(after).max(1) } else { all }
        };
        let period = self.period();
        let in_period = |limits: &Self| limits.quota.saturating_mul(period) / limits.period();
        Self {
            memory: moved(self.memory, before.memory, after.memory),
            quota: moved(self.quota, in_period(before), in_period(after)),
            ..self
        }
    }

    /// CPUs, in thousandths.
    pub(super) fn cpus(&self) -> u64 {
        self.quota.saturating_mul(1000) / self.period()
    }

    pub(super) fn period(&self) -> u64 {
        if self.period == 0 { PERIOD } else { self.period }
    }

    /// Of processor time.
    pub(super) fn is_unlimited(&self) -> bool {
        self.quota == 0
    }
}

impl From<PodSize> for Limits {
    fn from(PodSize { memory, cpu_quota: quota, cpu_period: period }: PodSize) -> Self {
        Self { memory, quota, period, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_as_much_larger_or_smaller_as_one_of_its_containers() {
        let limits = |memory, quota, period| Limits { memory, quota, period, ..Limits::default() };
        let pod = limits(1000, 100_000, 100_000);
        let moved = |before: Limits, after: Limits| {
            let Limits { memory, quota, .. } = pod.clone().moved(&before, &after);
            (memory, quota)
        };
        assert_eq!(moved(limits(800, 50_000, 0), limits(300, 10_000, 50_000)), (500, 70_000));
        assert_eq!(moved(limits(300, 10_000, 50_000), limits(800, 50_000, 0)), (1500, 130_000));
        assert_eq!(moved(limits(0, 0, 0), limits(300, 9, 9)), (1000, 100_000), "it had none");
        assert_eq!(moved(limits(300, 9, 9), limits(0, 0, 0)), (1000, 100_000), "it has none");
        assert_eq!(moved(limits(5000, 0, 0), limits(10, 0, 0)).0, 10, "more than the pod's");
        let unlimited = Limits::default();
        assert_eq!(unlimited.clone().moved(&limits(9, 9, 9), &limits(8, 8, 8)), unlimited);
    }

    #[test]
    fn files_of_the_cgroup_count_as_what_they_stand_for() {
        let changed = |json| Limits::default().changed(&serde_json::from_str(json).unwrap());
        let files = changed(
            r#"{"memory": {"limit": 9}, "cpu": {"quota": 9, "shares": 9, "idle": 0}, "unified": {
                "memory.max": "41943040", "cpu.max": "5000 50000", "cpu.weight": "42", "cpu.idle": "1",
                "cpu.max.burst": "4000"}}"#,
        );
        let expected = Limits {
            memory: 41_943_040,
            quota: 5000,
            period: 50_000,
            burst: 4000,
            weight: 42,
            idle: Some(true),
            bounds: Some(cgroup::Bounds::default()),
        };
        assert_eq!(files, expected);
        let none = changed(
            r#"{"memory": {"limit": 9}, "cpu": {"quota": 9, "period": 8},
                "unified": {"memory.max": "max", "cpu.max": "max", "cpu.weight": "much"}}"#,
        );
        let bounds = Some(cgroup::Bounds::default());
        assert_eq!(none, Limits { period: 8, bounds, ..Limits::default() });
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let change = |limits: Limits, json| limits.changed(&serde_json::from_str(json).unwrap());
        let limits = change(Limits::default(), r#"{"cpu": {"quota": 1000, "period": 500}}"#);
        let limits = change(limits, r#"{"memory": {"limit": 7}, "cpu": {"quota": 2000}}"#);
        let bounds = Some(cgroup::Bounds::default());
        let expected = Limits { memory: 7, quota: 2000, period: 500, bounds, ..Limits::default() };
        assert_eq!(limits, expected);
        assert_eq!(change(limits, r#"{"memory": {"limit": -1}}"#).memory, 0);
    }
}
