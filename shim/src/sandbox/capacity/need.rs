//! What a machine needs for what its containers may use.

use super::limits::Limits;
use super::{Capacity, GUEST_MIB};
use crate::host::cgroup::Bounds;
use protocol::machine::{Size, memory_block_mib};

impl Capacity {
    /// What it takes to let every container have what its limits promise, up to the maximum.
    pub(super) fn needed(&self) -> Size {
        let sum =
            |of: fn(&Limits) -> u64| self.limits.values().map(of).fold(0, u64::saturating_add);
        let cpus = sum(Limits::cpus).max(self.promised.cpus()).div_ceil(1000);
        let vcpus = u32::try_from(cpus).unwrap_or(u32::MAX).min(self.max.vcpus);
        let block = self.block_mib();
        let lacking = |bytes: u64| match bytes.div_ceil(1 << 20) {
            0 => 0,
            mib => (mib + GUEST_MIB).saturating_sub(self.initial_mib).div_ceil(block),
        };
        // What a machine starts with is for those without a limit: not for what others are promised.
        let without = if self.members().any(|l| l.memory == 0) {
            self.initial_mib.saturating_sub(GUEST_MIB) << 20
        } else {
            0
        };
        let limited = sum(|l| l.memory);
        let beside = if limited == 0 { 0 } else { limited.saturating_add(without) };
        let all = lacking(beside.max(self.promised.memory));
        let one = self.limits.values().map(|l| l.memory).max().unwrap_or_default() >> 20;
        // Room for one of them, and for what the pod was promised, there is in any case, but for a part of a block.
        let promised = match self.promised.memory.div_ceil(1 << 20) {
            0 => 0,
            mib => mib + GUEST_MIB,
        };
        let least = one.max(promised).saturating_sub(self.initial_mib) / block;
        let most = self.below_ceiling().max(least);
        let blocks = all.min(most).min(self.max.added_mib / block);
        let used = if self.is_unlimited() { self.used_vcpus.min(self.most_used()) } else { 0 };
        Size { vcpus: vcpus.max(self.initial_vcpus).max(used), added_mib: blocks * block }
    }

    /// The containers that do something: not a pause container.
    fn members(&self) -> impl Iterator<Item = &Limits> {
        self.limits.values().filter(|limits| limits.bounds.is_some())
    }

    /// Whether a container may use all the time of the processors that there are, or of some of them. What its pod was
    /// promised is the sum of the limits that there are, and none of those that have none.
    pub(super) fn is_unlimited(&self) -> bool {
        self.members().any(Limits::is_unlimited)
    }

    /// How many of the host's processors there are for the containers that may use all of their time.
    fn most_used(&self) -> u32 {
        let unlimited = self.members().filter(|limits| limits.is_unlimited());
        let bounds: Vec<_> = unlimited.filter_map(|limits| limits.bounds.as_ref()).collect();
        let of_all = Bounds::of_all(&bounds).cpus().unwrap_or(u32::MAX);
        self.ceiling.cpus.map_or(of_all, |cpus| of_all.min(cpus.max(1)))
    }

    /// How many vCPUs to give when those that there are do not suffice for so many tasks; none: no more are to be had.
    pub(super) fn more_vcpus(&self, of_host: u32, runnable: u32) -> Option<u32> {
        let most = self.max.vcpus.min(of_host).min(self.most_used());
        let more = runnable.max(self.now.vcpus.saturating_add(1)).min(most);
        (self.is_unlimited() && more > self.now.vcpus).then_some(more)
    }

    /// What the guest's kernel takes at a time.
    pub(super) fn block_mib(&self) -> u64 {
        memory_block_mib(self.initial_mib)
    }

    /// What the guest says that it still has, where that can be: between what is needed and what it had.
    pub(super) fn kept(&self, needed: Size, told: Size) -> Size {
        let had = self.now;
        let blocks = told.added_mib.div_ceil(self.block_mib());
        let added_mib = blocks.saturating_mul(self.block_mib()).min(had.added_mib);
        larger(needed, Size { vcpus: told.vcpus.min(had.vcpus), added_mib })
    }
}

/// Each the larger of the two.
pub(super) fn larger(a: Size, b: Size) -> Size {
    Size { vcpus: a.vcpus.max(b.vcpus), added_mib: a.added_mib.max(b.added_mib) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{capacity, needed};
    use super::*;
    use crate::host::cgroup::Ceiling;
    use crate::sandbox::PodSize;

    #[test]
    fn the_machine_grows_only_for_limits_beyond_what_it_has() {
        assert_eq!(needed(&[]), (1, 0));
        assert_eq!(needed(&["{}", r#"{"memory": {"limit": -1}, "cpu": {"quota": -1}}"#]), (1, 0));
        assert_eq!(needed(&[r#"{"memory": {"limit": 67108864}}"#]), (1, 0));
        assert_eq!(needed(&[r#"{"memory": {"limit": 67108865}}"#]), (1, 128));
    }

    #[test]
    fn who_has_no_limit_has_what_a_machine_starts_with_beside_those_that_have() {
        let limited = r#"{"memory": {"limit": 67108864}}"#;
        assert_eq!(needed(&["{}", limited]), (1, 128));
        assert_eq!(needed(&["{}", "{}", limited, limited]), (1, 128));
        let mut paused = capacity(&["{}", limited]);
        paused.limits.values_mut().next().unwrap().bounds = None;
        assert_eq!(paused.needed().added_mib, 0, "a pause container does nothing");
    }

    #[test]
    fn what_turned_out_to_be_used_counts_for_who_has_no_limit() {
        let limited = r#"{"cpu": {"quota": 50000}}"#;
        let tried = |limits: &[&str], promised: PodSize, used_vcpus: u32, runnable: u32| {
            let now = Size { vcpus: used_vcpus.max(1), added_mib: 0 };
            let of = Capacity { promised: promised.into(), used_vcpus, now, ..capacity(limits) };
            (of.needed().vcpus, of.more_vcpus(3, runnable))
        };
        let after = |limits: &[&str], promised, used| tried(limits, promised, used, 2);
        let none = PodSize::default;
        assert_eq!(after(&["{}", limited], none(), 0), (1, Some(2)));
        assert_eq!(after(&["{}", limited], none(), 2), (2, Some(3)), "no more than the host has");
        assert_eq!(after(&["{}"], none(), 3), (3, None));
        assert_eq!(after(&[limited], none(), 2), (1, None));
        assert_eq!(tried(&["{}"], none(), 0, 3), (1, Some(3)), "all at once");
        assert_eq!(tried(&["{}"], none(), 0, u32::MAX), (1, Some(3)), "whatever the guest says");
        assert_eq!(tried(&["{}"], none(), 1, 0), (1, Some(2)), "they were waiting a moment ago");
        let pod = PodSize { cpu_quota: 50_000, cpu_period: 100_000, ..none() };
        assert_eq!(after(&["{}", limited], pod, 2), (2, Some(3)), "what its neighbour has limits");
        let mut paused = Capacity { promised: pod.into(), ..capacity(&["{}", limited]) };
        paused.limits.values_mut().next().unwrap().bounds = None;
        assert_eq!(paused.more_vcpus(3, 2), None, "a pause container does nothing");
        let ceiling = Ceiling { cpus: Some(2), memory: None };
        let below = Capacity { ceiling, now: Size { vcpus: 1, added_mib: 0 }, ..capacity(&["{}"]) };
        assert_eq!(below.more_vcpus(3, 9), Some(2), "all that those above leave it");
        let bound = |cpus: &str| format!(r#"{{"cpu": {{"cpus": "{cpus}"}}}}"#);
        assert_eq!(after(&[&bound("0")], none(), 2), (1, None), "one of the host's");
        assert_eq!(tried(&[&bound("1,4")], none(), 0, 9), (1, Some(2)), "two of the host's");
        assert_eq!(tried(&[&bound("1,4"), limited], none(), 2, 9), (2, None));
        assert_eq!(tried(&[&bound("1,4"), &bound("4-5")], none(), 2, 9), (2, Some(3)));
        assert_eq!(tried(&[&bound("1"), "{}"], none(), 1, 2), (1, Some(2)), "all of them");
    }

    #[test]
    fn the_limits_of_all_containers_count_together() {
        let one = r#"{"memory": {"limit": 134217728}, "cpu": {"quota": 75000}}"#;
        assert_eq!(needed(&[one]), (1, 128));
        assert_eq!(needed(&[one, one]), (2, 256));
        assert_eq!(needed(&[one, r#"{"cpu": {"quota": 5000, "period": 2500}}"#]), (3, 128));
    }

    #[test]
    fn a_promise_is_room_for_all_containers_and_not_beside_theirs() {
        let promised = |size: PodSize, limits: &[&str]| {
            let Size { vcpus, added_mib } =
                Capacity { promised: size.into(), ..capacity(limits) }.needed();
            (vcpus, added_mib)
        };
        let size = PodSize { memory: 256 << 20, cpu_quota: 300_000, cpu_period: 100_000 };
        assert_eq!(promised(size, &[]), (3, 256));
        let one = r#"{"memory": {"limit": 134217728}, "cpu": {"quota": 75000}}"#;
        assert_eq!(promised(size, &[one, one]), (3, 256));
        assert_eq!(promised(size, &[one, one, one]), (3, 384));
        assert_eq!(promised(PodSize::default(), &[one]), (1, 128));
    }

    #[test]
    fn the_cgroups_above_bound_what_all_have_together_but_not_what_one_was_promised() {
        let one = r#"{"memory": {"limit": 268435456}}"#;
        let needed = |ceiling_mib: u64, promised_mib: u64, limits: &[&str]| {
            let promised = PodSize { memory: promised_mib << 20, ..PodSize::default() };
            let ceiling = Ceiling { memory: Some(ceiling_mib << 20), cpus: None };
            let of = Capacity { ceiling, promised: promised.into(), ..capacity(limits) };
            of.needed().added_mib
        };
        assert_eq!(needed(4096, 0, &[one, one]), 4 * 128, "there is enough");
        assert_eq!(needed(512, 0, &[one, one]), 2 * 128, "less than both");
        assert_eq!(needed(640, 0, &[one, one]), 3 * 128, "whole blocks");
        assert_eq!(needed(100, 0, &[one, one]), 128, "one of them");
        assert_eq!(needed(100, 320, &[one, one]), 2 * 128, "what the pod was promised");
        // One container in a pod with this limit and the RuntimeClass's overhead, of which only the first is known.
        let alone = |mib: u64| {
            let limit = format!(r#"{{"memory": {{"limit": {}}}}}"#, mib << 20);
            needed(mib + 128, 0, &[&limit])
        };
        assert_eq!((alone(65), alone(200), alone(250), alone(260)), (0, 128, 128, 128));
    }

    #[test]
    fn limits_beyond_the_maximum_are_no_error() {
        let all = r#"{"memory": {"limit": 9223372036854775807},
            "cpu": {"quota": 9223372036854775807, "period": 1}}"#;
        assert_eq!(needed(&[all, all]), (4, 7 * 128));
        let capacity = capacity(&[all, all]);
        assert_eq!(capacity.of_host(capacity.needed()).cpu.quota, Some(u64::MAX));
    }

    #[test]
    fn a_guest_that_lies_about_what_it_has_let_go_gains_nothing() {
        let size = |vcpus, added_mib| Size { vcpus, added_mib };
        let grown = Capacity { now: size(4, 512), ..capacity(&[]) };
        let kept = |vcpus, added_mib| grown.kept(size(1, 128), size(vcpus, added_mib));
        assert_eq!(kept(1, 128), size(1, 128));
        assert_eq!(kept(2, 300), size(2, 384));
        assert_eq!(kept(0, 0), size(1, 128));
        assert_eq!(kept(u32::MAX, u64::MAX >> 20), size(4, 512));
    }

    #[test]
    fn a_large_machine_grows_by_what_its_kernel_takes_at_a_time() {
        let one = r#"{"memory": {"limit": 68719476736}}"#;
        let large = |max_mib| Capacity {
            initial_mib: 63 << 10,
            max: Size { vcpus: 4, added_mib: max_mib },
            ..capacity(&[one])
        };
        assert_eq!(large(9000).needed().added_mib, 2048);
        assert_eq!(large(2047).needed().added_mib, 0);
    }
}
