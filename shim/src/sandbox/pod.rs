//! What the containers of a pod have to agree on.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::oci::plan::Plan;
use crate::oci::pod::Part;
use std::sync::PoisonError;

/// As the containers so far have it.
#[derive(Debug, Default)]
pub(super) struct Pod {
    /// Whether the pod's containers share a PID namespace; none: there has been none but the pause container.
    shares_pids: Option<bool>,
}

impl Sandbox {
    /// The container whose PID namespace the one with this plan joins; empty: none.
    ///
    /// # Errors
    /// [`Error::Unimplemented`]: it would join that of another one than the pause container. On the host one process
    /// stands for all of a pod's, so the spec is the same: but in a pod that shares no PID namespace that is asked for.
    pub(super) fn joins_pids_of(&self, id: &str, plan: &Plan) -> Result<String> {
        if plan.part != Part::Member {
            return Ok(String::new());
        }
        let mut pod = self.0.pod.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = *pod.shares_pids.get_or_insert(plan.joins_pids);
        match (plan.joins_pids, shared) {
            (true, true) => Ok(self.id().to_owned()),
            (true, false) => Err(Error::Unimplemented(format!(
                "container {id}: config.json: /linux/namespaces: its pod's containers have PID namespaces of their \
                 own, and another container's can't be joined"
            ))),
            (false, _) => Ok(String::new()),
        }
    }
}
