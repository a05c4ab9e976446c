//! What the containers of a pod find in their guest, and what is remembered of each.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::agent::{Agent, PidsOf};
use crate::host::network::NetDevice;
use crate::oci::plan::disks::Disk;
use crate::oci::plan::{Created, Plan};
use crate::oci::pod::Part;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

/// What is remembered of its containers.
#[derive(Debug, Default)]
pub(super) struct Pod {
    /// What the containers were created with, by their ids.
    created: BTreeMap<String, Created>,
}

impl Sandbox {
    fn pod(&self) -> MutexGuard<'_, Pod> {
        self.0.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a container is created with, its limits and its disks.
    pub(super) fn note_limits(&self, id: &str, part: Part, resources: Value, disks: &[Disk]) {
        let disks = disks.iter().map(|disk| disk.numbers).collect();
        let created = Created { part, resources, disks, has_cgroup: self.0.cgroup.is_some() };
        self.pod().created.insert(id.to_owned(), created);
    }

    /// What a container was created with.
    pub(super) fn created(&self, id: &str) -> Created {
        self.pod().created.get(id).cloned().unwrap_or_default()
    }

    /// Forgets all that is remembered of a container beside the table.
    pub(super) fn forget(&self, id: &str) {
        self.pod().created.remove(id);
        self.forget_oom_score(id);
        self.0.resolver.take(id);
    }

    /// Makes the guest the pod that was told of at the launch.
    ///
    /// # Errors
    /// Its network or its kernel parameters can't be had, or the machine or the agent fails.
    pub async fn set_up(&self) -> Result<()> {
        let sandbox = self.clone();
        Self::detached(async move {
            let agent = sandbox.agent().await?;
            sandbox.keep_promise(&agent).await?;
            let Some(pod) = &sandbox.0.told else { return Ok(()) };
            sandbox.become_pod(&agent, pod.network.as_deref(), &[], &pod.sysctls, false).await?;
            sandbox.forward_localhost().await;
            Ok(())
        })
        .await
    }

    /// Gives the guest the network of the namespace at `path`, with these devices of the host's, and then kernel parameters,
    /// some of which are of that.
    ///
    /// # Errors
    /// See [`Sandbox::join_network`]; a parameter that is none, or can't be so.
    pub(super) async fn become_pod(
        &self,
        agent: &Agent,
        path: Option<&Path>,
        devices: &[NetDevice],
        sysctls: &BTreeMap<String, String>,
        hooked: bool,
    ) -> Result<()> {
        self.join_network(agent, path, devices).await?;
        if hooked {
            // The container's sysctls may name an interface of theirs.
            self.look_at_network_again(agent).await?;
        }
        if !sysctls.is_empty() {
            agent.set_sysctls(sysctls).await?;
        }
        Ok(())
    }

    /// Whose PID namespace the container with this plan has in the guest.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: it would join that of a process of the host which stands for none of the sandbox's.
    pub(super) fn pids_of(&self, id: &str, plan: &Plan) -> Result<PidsOf> {
        let Some(pid) = plan.joins_pids else { return Ok(PidsOf::Its) };
        if pid != 0 && pid == self.pid() {
            return Ok(match &self.0.told {
                None => PidsOf::Container(self.id().to_owned()),
                Some(told) if told.pids_of_guest => PidsOf::Its,
                Some(_) => PidsOf::Pod,
            });
        }
        self.0.stand_ins.container(pid).map(PidsOf::Container).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "container {id}: config.json: the guest can't join the host's pid namespace /proc/{pid}/ns/pid: the \
                 process stands for no container of its pod, or for one that has ended"
            ))
        })
    }
}
