//! How large the machine is: as it started, and larger while the limits of its containers ask for it.
//!
//! The VMM decides what the guest can use; so when it grows the VMM comes first, and when it gives back the
//! guest does.

mod ceiling;
mod host;
mod limits;
mod need;
mod start;
#[cfg(test)]
mod testing;

use super::{PodResize, PodSize, Sandbox};
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::host::cgroup::{Ceiling, Cgroup};
use crate::host::processors;
use crate::oci::pod::Part;
use crate::sandbox::table::Number;
use crate::settings::Settings;
use host::{limit_host, look_up, settle_host};
pub(super) use limits::Limits;
use need::larger;
use oci_spec::runtime::LinuxResources;
use protocol::machine::Size;
pub(super) use start::fitted;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What the guest itself needs besides the memory that its containers are promised, MiB.
const GUEST_MIB: u64 = 64;

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
    limits: BTreeMap<Number, Limits>,
    /// What there is to be room for in any case.
    promised: Limits,
    /// That was said again: who says it does so at each change.
    promised_again: bool,
    /// So many vCPUs turned out to be used by containers that have no limit.
    used_vcpus: u32,
    /// Whether they get more then.
    by_use: bool,
    /// Of the host's, for our processes.
    cgroup: Option<Arc<Cgroup>>,
    /// The most that those above it leave it.
    ceiling: Ceiling,
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
            limits: BTreeMap::new(),
            promised: size.into(),
            promised_again: false,
            used_vcpus: 0,
            by_use: settings.vcpus_by_use,
            cgroup,
            ceiling: Ceiling::default(),
        }
    }

    /// The host's cgroup whose limits follow it.
    pub(super) fn cgroup(&self) -> Option<Arc<Cgroup>> {
        self.cgroup.clone()
    }

    /// Whether a container has a limit, as far as is noted.
    #[cfg(test)]
    pub(super) fn limits(&self, number: Number) -> bool {
        let limits = self.limits.get(&number).cloned();
        limits.is_some_and(|limits| Limits { bounds: None, ..limits } != Limits::default())
    }

    /// Notes the limits of a container; none: it is gone.
    fn set(&mut self, number: Number, limits: Option<Limits>) {
        match limits {
            Some(limits) => self.limits.insert(number, limits),
            // Whether the others use as many shows.
            None => self.limits.remove(&number).inspect(|_| self.used_vcpus = 0),
        };
    }
}

impl Sandbox {
    /// Lets the machine grow to what a container needs once it has these limits. Gives those that it had, for
    /// [`Sandbox::give_back`] if it does not get them after all.
    ///
    /// # Errors
    /// The host or the guest fails to, or it is gone.
    pub(super) async fn make_room(
        &self,
        agent: &Agent,
        number: Number,
        part: Part,
        resources: &LinuxResources,
    ) -> Result<Option<Limits>> {
        let mut capacity = self.0.capacity.lock().await;
        if !self.table().has(number) {
            return Err(Error::NotFound("the container, which was deleted meanwhile".to_owned()));
        }
        let before = capacity.limits.get(&number).cloned();
        let mut limits = before.clone().unwrap_or_default().changed(resources);
        if part == Part::Pause {
            // It does nothing, and binds nobody.
            limits.bounds = None;
        }
        capacity.set(number, Some(limits));
        if let Err(error) = self.fit(agent, &mut capacity).await {
            // They are not to be had, so nothing later may grow for them.
            capacity.set(number, before);
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
            let before = capacity.promised.clone();
            capacity.promised = before.clone().resized(change);
            capacity.promised_again = true;
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

    /// A container has other limits than before, and with it its pod, of which nobody says so: kubelet's resize in place
    /// comes to runtimes as updates of containers only. Then the machine gives back what is more.
    pub(super) async fn follow_update(&self, number: Number, before: Option<Limits>) {
        let mut capacity = self.0.capacity.lock().await;
        if let (Some(before), Some(after)) = (before, capacity.limits.get(&number).cloned())
            && !capacity.promised_again
        {
            capacity.promised = capacity.promised.clone().moved(&before, &after);
        }
        self.shrink(&mut capacity).await;
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
            let runnable = match agent.wait_busy().await {
                Ok(runnable) => runnable,
                Err(Error::Ended(_)) => return,
                Err(error) => {
                    let id = self.id();
                    tracing::info!("sandbox {id} keeps its vCPUs, used or not: {}", error.chain());
                    return;
                }
            };
            let mut capacity = self.0.capacity.lock().await;
            if let Some(more) = capacity.more_vcpus(processors::count(), runnable) {
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

    /// Notes the limits of a container, none if it is gone, and has the machine give back what no container needs, as
    /// far as the guest can part with it. What it keeps is given back page by page as it becomes free.
    pub(super) async fn give_back(&self, number: Number, limits: Option<Limits>) {
        let mut capacity = self.0.capacity.lock().await;
        // It may have been deleted meanwhile.
        let limits = limits.filter(|_| self.table().has(number));
        capacity.set(number, limits);
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
