//! How large the machine is: as it started, and larger while the limits of its containers ask for it.
//!
//! The VMM decides what the guest can use; so when it grows the VMM comes first, and when it gives back the
//! guest does.

use super::{PodResize, PodSize, Sandbox};
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::host::cgroup::{self, Cgroup};
use crate::settings::Settings;
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use protocol::machine::{Size, memory_block_mib};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What the guest itself needs besides the memory that its containers are promised, MiB.
const GUEST_MIB: u64 = 64;

/// The weight of a container that names none.
const DEFAULT_WEIGHT: u64 = 100;

/// The kernel's period of a CPU quota, microseconds, where none is named.
const PERIOD: u64 = 100_000;

/// The least part of a processor that the host leaves a sandbox, as one over this: the guest enforces smaller quotas,
/// and has to answer within the agent's deadlines all the same.
const LEAST_CPU: u64 = 10;

/// What our processes need of the host's memory besides the guest's, MiB; and of page tables and the like, one over
/// this part of the guest's.
const OVERHEAD_MIB: u64 = 64;
const OVERHEAD_PART: u64 = 64;

/// What they really need of it: less, as the pod's own overhead is all that there is where its limit counts.
const COST_MIB: u64 = 24;
const COST_PART: u64 = 170;

/// From one change for what turned out to be used to the next, at least: a guest could ask for ever.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The machine's size, and what its containers may use.
#[derive(Default)]
pub(super) struct Capacity {
    initial_vcpus: u32,
    initial_mib: u64,
    max: Size,
    now: Size,
    /// The guest address of added memory, once there is any.
    added_at: u64,
    limits: HashMap<String, Limits>,
    /// What there is to be room for in any case.
    promised: Limits,
    /// So many vCPUs turned out to be used by containers that have no limit.
    used_vcpus: u32,
    /// Whether they get more then.
    by_use: bool,
    /// Of the host's, for our processes.
    cgroup: Option<Arc<Cgroup>>,
    /// The most memory that those above it leave it, bytes; none: as much as there is.
    ceiling: Option<u64>,
}

/// The settings for a machine that is to have room for this, where those above its cgroup leave it so many bytes, if that
/// is known. As much as is not a whole block it has from the start, so that no block is there for a part of it, which a
/// pod's limit would not cover. It starts with less than usual where that would be more than is left, but for what was
/// promised: if the guest's page cache took more, the VMM would be killed.
pub(super) fn fitted(mut settings: Settings, size: PodSize, ceiling: Option<u64>) -> Settings {
    let wanted = size.memory.div_ceil(1 << 20).saturating_add(GUEST_MIB);
    let lacking = wanted.saturating_sub(settings.memory_mib);
    let more = lacking % memory_block_mib(settings.memory_mib);
    if size.memory > 0 && settings.memory_mib + more <= settings.max_memory_mib {
        settings.memory_mib += more;
    }
    if let Some(left) = ceiling.map(guests_part) {
        settings.memory_mib = settings.memory_mib.min(left.max(wanted));
    }
    settings
}

/// What is a guest's of what the host leaves its sandbox, MiB of bytes.
fn guests_part(ceiling: u64) -> u64 {
    let mib = ceiling >> 20;
    mib.saturating_sub(COST_MIB + mib / COST_PART)
}

/// What one container may use; 0: no limit, so nothing that the machine would grow for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    memory: u64,
    quota: u64,
    period: u64,
    /// Saved up from periods before, microseconds.
    burst: u64,
    weight: u64,
    /// Whether it is to run only when nobody else does, if that was said.
    idle: Option<bool>,
    /// It is for some of the host's processors only: the machine has others, but no more for it.
    bound: bool,
}

impl Limits {
    /// These with those changed that are named.
    fn changed(mut self, to: &LinuxResources) -> Self {
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
            self.bound |= cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty());
        }
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
    fn resized(self, to: PodResize) -> Self {
        Self {
            memory: to.memory.unwrap_or(self.memory),
            quota: to.cpu_quota.unwrap_or(self.quota),
            period: to.cpu_period.unwrap_or(self.period),
            ..self
        }
    }

    /// CPUs, in thousandths.
    fn cpus(&self) -> u64 {
        self.quota.saturating_mul(1000) / self.period()
    }

    fn period(&self) -> u64 {
        if self.period == 0 { PERIOD } else { self.period }
    }

    fn is_unlimited(&self) -> bool {
        self.quota == 0 && !self.bound
    }
}

impl From<PodSize> for Limits {
    fn from(PodSize { memory, cpu_quota: quota, cpu_period: period }: PodSize) -> Self {
        Self { memory, quota, period, ..Self::default() }
    }
}

impl Capacity {
    /// Of a machine that has just been started.
    pub(super) fn new(settings: &Settings, size: PodSize, cgroup: Option<Arc<Cgroup>>) -> Self {
        let &Settings { vcpus, memory_mib, max_vcpus, max_memory_mib, .. } = settings;
        Self {
            initial_vcpus: vcpus,
            initial_mib: memory_mib,
            max: Size { vcpus: max_vcpus, added_mib: max_memory_mib.saturating_sub(memory_mib) },
            now: Size { vcpus, added_mib: 0 },
            added_at: 0,
            limits: HashMap::new(),
            promised: size.into(),
            used_vcpus: 0,
            by_use: settings.vcpus_by_use,
            cgroup,
            ceiling: None,
        }
    }

    /// The host's cgroup whose limits follow it.
    pub(super) fn cgroup(&self) -> Option<Arc<Cgroup>> {
        self.cgroup.clone()
    }

    /// Whether container `id` has a limit, as far as is noted.
    #[cfg(test)]
    pub(super) fn limits(&self, id: &str) -> bool {
        self.limits.get(id).is_some_and(|limits| *limits != Limits::default())
    }

    /// Notes the limits of a container; none: it is gone.
    fn set(&mut self, id: &str, limits: Option<Limits>) {
        match limits {
            Some(limits) => self.limits.insert(id.to_owned(), limits),
            // Whether the others use as many shows.
            None => self.limits.remove(id).inspect(|_| self.used_vcpus = 0),
        };
    }

    /// What it takes to let every container have what its limits promise, up to the maximum.
    fn needed(&self) -> Size {
        let sum =
            |of: fn(&Limits) -> u64| self.limits.values().map(of).fold(0, u64::saturating_add);
        let cpus = sum(Limits::cpus).max(self.promised.cpus()).div_ceil(1000);
        let vcpus = u32::try_from(cpus).unwrap_or(u32::MAX).min(self.max.vcpus);
        let block = self.block_mib();
        let lacking = |bytes: u64| match bytes.div_ceil(1 << 20) {
            0 => 0,
            mib => (mib + GUEST_MIB).saturating_sub(self.initial_mib).div_ceil(block),
        };
        let all = lacking(sum(|l| l.memory).max(self.promised.memory));
        let one = self.limits.values().map(|l| l.memory).max().unwrap_or_default() >> 20;
        // Room for one of them, and for what the pod was promised, there is in any case, but for a part of a block.
        let promised = match self.promised.memory.div_ceil(1 << 20) {
            0 => 0,
            mib => mib + GUEST_MIB,
        };
        let least = one.max(promised).saturating_sub(self.initial_mib) / block;
        let most = self.below_ceiling().max(least);
        let blocks = all.min(most).min(self.max.added_mib / block);
        let used = if self.is_unlimited() { self.used_vcpus } else { 0 };
        Size { vcpus: vcpus.max(self.initial_vcpus).max(used), added_mib: blocks * block }
    }

    /// Whether a container may use all the processors that there are.
    fn is_unlimited(&self) -> bool {
        self.promised.quota == 0 && self.limits.values().any(Limits::is_unlimited)
    }

    /// How many vCPUs to try when those that there are do not suffice; none: no more are to be had.
    fn more_vcpus(&self, of_host: u32) -> Option<u32> {
        let most = self.max.vcpus.min(of_host);
        let more = self.now.vcpus.saturating_mul(2).min(most);
        (self.is_unlimited() && more > self.now.vcpus).then_some(more)
    }

    /// The most blocks that those above the sandbox's cgroup leave the guest: if its page cache took more, the VMM would
    /// be killed.
    fn below_ceiling(&self) -> u64 {
        let Some(ceiling) = self.ceiling else { return u64::MAX };
        guests_part(ceiling).saturating_sub(self.initial_mib) / self.block_mib()
    }

    /// What a machine of this size may take, and what those above leave it, MiB, where that is less.
    fn beyond_ceiling(&self, size: Size) -> Option<(u64, u64)> {
        let left = self.ceiling? >> 20;
        let taken = self.initial_mib + size.added_mib + COST_MIB;
        (taken > left).then_some((taken, left))
    }

    /// What the guest's kernel takes at a time.
    fn block_mib(&self) -> u64 {
        memory_block_mib(self.initial_mib)
    }

    /// What the guest says that it still has, where that can be: between what is needed and what it had.
    fn kept(&self, needed: Size, told: Size) -> Size {
        let had = self.now;
        let blocks = told.added_mib.div_ceil(self.block_mib());
        let added_mib = blocks.saturating_mul(self.block_mib()).min(had.added_mib);
        larger(needed, Size { vcpus: told.vcpus.min(had.vcpus), added_mib })
    }
}

impl Capacity {
    /// What the sandbox's processes may take of the host with a machine of this size. Memory: all that the machine
    /// has and what it costs, so that a guest whose page cache fills its memory costs the VMM nothing.
    fn of_host(&self, size: Size) -> cgroup::Limits {
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
        }
    }
}

/// The host's.
fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Each the larger of the two.
fn larger(a: Size, b: Size) -> Size {
    Size { vcpus: a.vcpus.max(b.vcpus), added_mib: a.added_mib.max(b.added_mib) }
}

impl Sandbox {
    /// Lets the machine grow to what container `id` needs once it has these limits. Gives those that it had,
    /// for [`Sandbox::give_back`] if it does not get them after all.
    ///
    /// # Errors
    /// The host or the guest fails to.
    pub(super) async fn make_room(
        &self,
        agent: &Agent,
        id: &str,
        resources: &LinuxResources,
    ) -> Result<Option<Limits>> {
        let mut capacity = self.0.capacity.lock().await;
        let before = capacity.limits.get(id).copied();
        capacity.set(id, Some(before.unwrap_or_default().changed(resources)));
        if let Err(error) = self.fit(agent, &mut capacity).await {
            // They are not to be had, so nothing later may grow for them.
            capacity.set(id, before);
            settle_host(&capacity).await;
            return Err(error);
        }
        Ok(before)
    }

    /// Lets the machine have what all containers of a pod together may use, from now on, and give back what is more.
    ///
    /// # Errors
    /// The host or the guest fails to: then what was promised before still is.
    pub async fn promise(&self, change: PodResize) -> Result<()> {
        let agent = self.agent().await?;
        let sandbox = self.clone();
        Self::detached(async move {
            let mut capacity = sandbox.0.capacity.lock().await;
            let before = capacity.promised;
            capacity.promised = before.resized(change);
            if let Err(error) = sandbox.fit(&agent, &mut capacity).await {
                capacity.promised = before;
                settle_host(&capacity).await;
                return Err(error);
            }
            sandbox.shrink(&mut capacity).await;
            Ok(())
        })
        .await
    }

    /// Lets the machine have what was promised before it had a container.
    pub(super) async fn keep_promise(&self, agent: &Agent) -> Result<()> {
        let mut capacity = self.0.capacity.lock().await;
        self.fit(agent, &mut capacity).await
    }

    /// Lets the machine grow to what is needed.
    async fn fit(&self, agent: &Agent, capacity: &mut Capacity) -> Result<()> {
        look_up(capacity).await;
        let size = larger(capacity.now, capacity.needed());
        if let Some((taken, left)) = capacity.beyond_ceiling(size) {
            tracing::warn!(
                "sandbox {}: the machine may take {taken} MiB, and the cgroups above leave it {left}: the host may end \
                 it; a larger memory limit, or overhead of its RuntimeClass, helps",
                self.id()
            );
        }
        limit_host(capacity, size).await?;
        if size == capacity.now {
            return Ok(());
        }
        self.grow(agent, capacity, size).await
    }

    /// Gives the machine more vCPUs whenever processes of a container that has no limit wait for those that it has; for
    /// one that is idle, or has ended before, there is nothing to pay. Ends with the guest.
    pub(super) async fn follow_use(self, agent: Agent) {
        if !self.0.capacity.lock().await.by_use {
            return;
        }
        loop {
            match agent.wait_busy().await {
                Ok(()) => {}
                Err(Error::Ended(_)) => return,
                Err(error) => {
                    let id = self.id();
                    tracing::info!("sandbox {id} keeps its vCPUs, used or not: {}", error.chain());
                    return;
                }
            }
            let mut capacity = self.0.capacity.lock().await;
            if let Some(more) = capacity.more_vcpus(processors()) {
                let before = std::mem::replace(&mut capacity.used_vcpus, more);
                if let Err(error) = self.fit(&agent, &mut capacity).await {
                    capacity.used_vcpus = before;
                    tracing::warn!("sandbox {} gets no more vCPUs: {}", self.id(), error.chain());
                }
            }
            drop(capacity);
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    async fn grow(&self, agent: &Agent, capacity: &mut Capacity, size: Size) -> Result<()> {
        capacity.added_at = self.0.vm.resize(capacity.now, size).await?;
        capacity.now = size;
        agent.resize_sandbox(size.vcpus, capacity.added_at, size.added_mib << 20).await?;
        tracing::info!("sandbox {} has grown to {size:?}", self.id());
        Ok(())
    }

    /// Notes the limits of container `id`, none if it is gone, and has the machine give back what no container
    /// needs, as far as the guest can part with it. What it keeps is given back page by page as it becomes free.
    pub(super) async fn give_back(&self, id: &str, limits: Option<Limits>) {
        let mut capacity = self.0.capacity.lock().await;
        capacity.set(id, limits);
        self.shrink(&mut capacity).await;
    }

    /// Has the machine give back what no container needs any more.
    pub(super) async fn give_back_spare(&self) {
        let mut capacity = self.0.capacity.lock().await;
        self.shrink(&mut capacity).await;
    }

    async fn shrink(&self, capacity: &mut Capacity) {
        self.let_go(capacity).await;
        settle_host(capacity).await;
    }

    async fn let_go(&self, capacity: &mut Capacity) {
        look_up(capacity).await;
        if !capacity.is_unlimited() {
            capacity.used_vcpus = 0;
        }
        let (needed, now, added_at) = (capacity.needed(), capacity.now, capacity.added_at);
        if needed == now {
            return;
        }
        let shrunk = async {
            let agent = self.agent().await?;
            let (vcpus, bytes) =
                agent.resize_sandbox(needed.vcpus, added_at, needed.added_mib << 20).await?;
            let left = capacity.kept(needed, Size { vcpus, added_mib: bytes >> 20 });
            self.0.vm.resize(now, left).await.map(|_| left)
        };
        match shrunk.await {
            Ok(left) => {
                capacity.now = left;
                tracing::info!("sandbox {} has shrunk to {left:?}", self.id());
            }
            Err(error) => {
                tracing::warn!("sandbox {} does not shrink: {}", self.id(), error.chain());
            }
        }
    }
}

/// What those above the sandbox's cgroup leave it: an engine changes a pod's before its containers'.
async fn look_up(capacity: &mut Capacity) {
    let Some(cgroup) = capacity.cgroup.clone() else { return };
    let read = tokio::task::spawn_blocking(move || cgroup.ceiling()).await;
    capacity.ceiling = read.unwrap_or_default();
}

/// Sets what the host gives our processes when the machine has this size.
async fn limit_host(capacity: &Capacity, size: Size) -> Result<()> {
    let Some(cgroup) = capacity.cgroup.clone() else { return Ok(()) };
    let limits = capacity.of_host(size);
    // Maybe by way of systemd, which may take its time.
    let set = tokio::task::spawn_blocking(move || cgroup.limit(&limits)).await;
    set.map_err(|e| Error::system("set the limits of a cgroup")(std::io::Error::other(e)))?
}

/// The same for the size that it has, where no failure can be told.
async fn settle_host(capacity: &Capacity) {
    if let Err(error) = limit_host(capacity, capacity.now).await {
        tracing::warn!("{}", error.chain());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn capacity(limits: &[&str]) -> Capacity {
        let max = Size { vcpus: 4, added_mib: 1000 };
        let limits = limits.iter().enumerate().map(|(n, json)| {
            (n.to_string(), Limits::default().changed(&serde_json::from_str(json).unwrap()))
        });
        Capacity {
            initial_vcpus: 1,
            initial_mib: 128,
            max,
            limits: limits.collect(),
            ..Capacity::default()
        }
    }

    fn needed(limits: &[&str]) -> (u32, u64) {
        let Size { vcpus, added_mib } = capacity(limits).needed();
        (vcpus, added_mib)
    }

    #[test]
    fn the_machine_grows_only_for_limits_beyond_what_it_has() {
        assert_eq!(needed(&[]), (1, 0));
        assert_eq!(needed(&["{}", r#"{"memory": {"limit": -1}, "cpu": {"quota": -1}}"#]), (1, 0));
        assert_eq!(needed(&[r#"{"memory": {"limit": 67108864}}"#]), (1, 0));
        assert_eq!(needed(&[r#"{"memory": {"limit": 67108865}}"#]), (1, 128));
    }

    #[test]
    fn what_turned_out_to_be_used_counts_for_who_has_no_limit() {
        let limited = r#"{"cpu": {"quota": 50000}}"#;
        let after = |limits: &[&str], promised: PodSize, used_vcpus: u32| {
            let now = Size { vcpus: used_vcpus.max(1), added_mib: 0 };
            let of = Capacity { promised: promised.into(), used_vcpus, now, ..capacity(limits) };
            (of.needed().vcpus, of.more_vcpus(3))
        };
        let none = PodSize::default;
        assert_eq!(after(&["{}", limited], none(), 0), (1, Some(2)));
        assert_eq!(after(&["{}", limited], none(), 2), (2, Some(3)), "no more than the host has");
        assert_eq!(after(&["{}"], none(), 3), (3, None));
        assert_eq!(after(&[limited], none(), 2), (1, None));
        let pod = PodSize { cpu_quota: 50_000, cpu_period: 100_000, ..none() };
        assert_eq!(after(&["{}"], pod, 2), (1, None), "its pause container has no limit either");
        let bound = r#"{"cpu": {"cpus": "0"}}"#;
        assert_eq!(after(&[bound], none(), 2), (1, None), "processors of the host's");
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
            let ceiling = Some(ceiling_mib << 20);
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
    fn a_machine_that_is_more_than_is_left_to_it_is_told() {
        let of = |ceiling_mib: Option<u64>| {
            let ceiling = ceiling_mib.map(|mib| mib << 20);
            Capacity { ceiling, ..capacity(&[]) }.beyond_ceiling(Size { vcpus: 1, added_mib: 128 })
        };
        assert_eq!((of(None), of(Some(280))), (None, None));
        assert_eq!(of(Some(279)), Some((280, 279)));
    }

    #[test]
    fn a_machine_starts_with_what_is_no_whole_block_of_a_promise() {
        let start = |memory_mib: u64, promised_mib: u64| {
            let settings = Settings::resolve(Config::default()).unwrap();
            let settings = Settings { memory_mib, max_memory_mib: 1000, ..settings };
            let size = PodSize { memory: promised_mib << 20, ..PodSize::default() };
            fitted(settings, size, None).memory_mib
        };
        assert_eq!(start(128, 0), 128);
        assert_eq!(start(128, 64), 128, "it has room");
        assert_eq!(start(128, 65), 129);
        assert_eq!(start(128, 256), 128 + 64);
        assert_eq!(start(128, 64 + 256), 128);
        assert_eq!(start(990, 990), 990, "there is no more");
    }

    #[test]
    fn a_machine_starts_with_less_where_less_is_left_to_it() {
        let start = |memory_mib: u64, promised_mib: u64, ceiling_mib: u64| {
            let settings = Settings::resolve(Config::default()).unwrap();
            let settings = Settings { memory_mib, max_memory_mib: 1000, ..settings };
            let size = PodSize { memory: promised_mib << 20, ..PodSize::default() };
            fitted(settings, size, Some(ceiling_mib << 20)).memory_mib
        };
        // With the RuntimeClass's overhead: none takes more than is left.
        for limit in [1, 10, 26, 27, 40, 130] {
            let taken = start(128, limit, limit + 128) + COST_MIB;
            assert!(taken <= limit + 128, "{limit} MiB: {taken}");
        }
        assert_eq!((start(128, 10, 138), start(128, 26, 154)), (114, 128));
        assert_eq!(start(128, 130, 258), 194);
        assert_eq!(start(128, 0, 138), 114, "nobody said how large it is");
        // What the guest itself needs it has, and what was promised.
        assert_eq!((start(128, 0, 20), start(128, 10, 20), start(128, 60, 60)), (64, 74, 124));
        assert_eq!(start(128, 100, 60), 164, "as without");
        assert_eq!((start(128, 0, 4096), start(48, 0, 80), start(256, 0, 0)), (128, 48, 64));
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
        };
        assert_eq!(host(&[limited]), one);
        let two = cgroup::Limits {
            memory: mib(384 + 6 + 64),
            cpu: cgroup::Bandwidth { quota: Some(300_000), period: 100_000, burst: 0 },
            weight: Some(2 * 59),
            idle: None,
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
            bound: false,
        };
        assert_eq!(files, expected);
        let none = changed(
            r#"{"memory": {"limit": 9}, "cpu": {"quota": 9, "period": 8},
                "unified": {"memory.max": "max", "cpu.max": "max", "cpu.weight": "much"}}"#,
        );
        assert_eq!(none, Limits { period: 8, ..Limits::default() });
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let change = |limits: Limits, json| limits.changed(&serde_json::from_str(json).unwrap());
        let limits = change(Limits::default(), r#"{"cpu": {"quota": 1000, "period": 500}}"#);
        let limits = change(limits, r#"{"memory": {"limit": 7}, "cpu": {"quota": 2000}}"#);
        assert_eq!(limits, Limits { memory: 7, quota: 2000, period: 500, ..Limits::default() });
        assert_eq!(change(limits, r#"{"memory": {"limit": -1}}"#).memory, 0);
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
