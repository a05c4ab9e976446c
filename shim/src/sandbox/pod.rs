//! What the containers of a pod have to agree on, and what they find in their guest.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::agent::{Agent, PidsOf};
use crate::oci::plan::Plan;
use crate::oci::pod::Part;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

/// As the containers so far have it.
#[derive(Debug, Default)]
pub(super) struct Pod {
    /// Whether the pod's containers share a PID namespace; none: there has been none but the pause container.
    shares_pids: Option<bool>,
}

impl Sandbox {
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

    /// Whose PID namespace the container with this plan has in the guest.
    ///
    /// # Errors
    /// [`Error::Unimplemented`]: it would join that of another one than the pod's own. On the host one process stands for
    /// all of a pod's, so the spec is the same: but in a pod that shares no PID namespace that is asked for.
    pub(super) fn pids_of(&self, id: &str, plan: &Plan) -> Result<PidsOf> {
        if plan.part != Part::Member {
            return Ok(PidsOf::Its);
        }
        let mut pod = self.0.pod.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = *pod.shares_pids.get_or_insert(plan.joins_pids);
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
