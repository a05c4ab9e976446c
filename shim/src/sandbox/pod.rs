//! What the containers of a pod have to agree on, what they find in their guest, and what is remembered of each.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::agent::{Agent, PidsOf};
use crate::oci::plan::Plan;
use crate::oci::pod::Part;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

/// As the containers so far have it.
#[derive(Debug, Default)]
pub(super) struct Pod {
    /// Whether the pod's containers share a PID namespace; none: there has been none but the pause container.
    shares_pids: Option<bool>,
    /// The limits that the containers were created with, by their ids.
    created_with: BTreeMap<String, Value>,
}

impl Sandbox {
    fn pod(&self) -> MutexGuard<'_, Pod> {
        self.0.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the limits that a container is created with.
    pub(super) fn note_limits(&self, id: &str, limits: Value) {
        self.pod().created_with.insert(id.to_owned(), limits);
    }

    /// The limits that a container was created with.
    pub(super) fn created_with(&self, id: &str) -> Value {
        self.pod().created_with.get(id).cloned().unwrap_or_default()
    }

    /// Forgets a container.
    pub(super) fn forget_limits(&self, id: &str) {
        self.pod().created_with.remove(id);
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
            sandbox.become_pod(&agent, pod.network.as_deref(), &pod.sysctls).await?;
            sandbox.forward_localhost().await;
            Ok(())
        })
        .await
    }

    /// Gives the guest the network of the namespace at `path`, and then kernel parameters, some of which are of that.
    ///
    /// # Errors
    /// See [`Sandbox::join_network`]; a parameter that is none, or can't be so.
    pub(super) async fn become_pod(
        &self,
        agent: &Agent,
        path: Option<&Path>,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.join_network(agent, path).await?;
        if !sysctls.is_empty() {
            agent.set_sysctls(sysctls).await?;
        }
        Ok(())
    }

    /// A container with such a plan is there: what it has of the pod the others have as well.
    pub(super) fn note_pids(&self, part: Part, joins_pids: bool) {
        if part == Part::Member {
            self.pod().shares_pids.get_or_insert(joins_pids);
        }
    }

    /// Whose PID namespace the container with this plan has in the guest.
    ///
    /// # Errors
    /// [`Error::Unimplemented`]: it would join that of another one than the pod's own. On the host one process stands for
    /// all of a pod's, so the spec is the same: but in a pod that shares no PID namespace that is asked for.
    pub(super) fn pids_of(&self, id: &str, plan: &Plan) -> Result<PidsOf> {
        if plan.part != Part::Member {
            return Ok(PidsOf::Its);
        }
        let shared = self.pod().shares_pids.unwrap_or(plan.joins_pids);
        match (plan.joins_pids, shared, &self.0.told) {
            (true, true, None) => Ok(PidsOf::Container(self.id().to_owned())),
            (true, true, Some(told)) if told.pids_of_guest => Ok(PidsOf::Its),
            (true, true, Some(_)) => Ok(PidsOf::Pod),
            (true, false, _) => Err(Error::Unimplemented(format!(
                "container {id}: config.json: /linux/namespaces: its pod's containers have PID namespaces of their \
                 own, and another container's can't be joined"
            ))),
            (false, ..) => Ok(PidsOf::Its),
        }
    }
}
