//! PID namespaces that containers share.

use super::{Containers, blocking};
use crate::error::AgentError;
use crate::guest::pod_init::{PodInit, Users};
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

impl Containers {
    /// Has a specification name the PID namespace of container `of`, if it is one's, or that of the pod; and the users
    /// of that container, where it has some: others couldn't enter that namespace.
    pub(super) async fn join_pids(
        &self,
        spec_json: Vec<u8>,
        of: &str,
        of_pod: bool,
    ) -> Result<Vec<u8>, AgentError> {
        let invalid =
            |e: &dyn std::fmt::Display| AgentError::Invalid(format!("specification: {e}"));
        let pid = match (of, of_pod) {
            ("", false) => return Ok(spec_json),
            ("", true) => {
                let spec: Spec = serde_json::from_slice(&spec_json).map_err(|e| invalid(&e))?;
                self.pod_init(Users::of(&spec)).await?
            }
            (of, _) => {
                let container = self.container(of)?;
                // Its number may be another process's then.
                if container.init().exit().is_some() {
                    return Err(AgentError::WrongState(format!(
                        "container {of:?}, whose PID namespace is to be joined, has ended"
                    )));
                }
                let pid = container.init().pid();
                let spec: Spec = serde_json::from_slice(&spec_json).map_err(|e| invalid(&e))?;
                if let Some(users) = Users::of(&spec) {
                    let failed = |e| AgentError::io(format!("the users of container {of:?}"), e);
                    check(users.are_of(pid).map_err(failed)?, &format!("container {of:?}"))?;
                    executed(pid).await;
                }
                pid
            }
        };
        let (path, users) = (format!("/proc/{pid}/ns/pid"), format!("/proc/{pid}/ns/user"));
        let mut spec: Spec = serde_json::from_slice(&spec_json).map_err(|e| invalid(&e))?;
        let namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(path);
        let namespace = namespace.build().map_err(|e| invalid(&e))?;
        if let Some(linux) = spec.linux_mut() {
            let all = linux.namespaces_mut().get_or_insert_default();
            all.retain(|other| other.typ() != LinuxNamespaceType::Pid);
            for own in all.iter_mut().filter(|other| other.typ() == LinuxNamespaceType::User) {
                own.set_path(Some(users.clone().into()));
            }
            all.push(namespace);
        }
        serde_json::to_vec(&spec).map_err(|e| invalid(&e))
    }

    /// The pod's first process, with the users of the first container that joins it.
    async fn pod_init(&self, users: Option<Users>) -> Result<i32, AgentError> {
        let asked = users.clone();
        let start = || blocking(move || PodInit::start(asked));
        let init = self.pod_init.get_or_try_init(start).await?;
        if !init.lives() {
            let text = "the pod's first process, which holds its PID namespace, has ended";
            return Err(AgentError::WrongState(text.into()));
        }
        check(users.is_none() || users == init.users, "a pod")?;
        Ok(init.pid)
    }
}

/// Waits a moment until the process runs a program of its container: before that the kernel takes it for the agent's, and
/// opens its namespaces for nobody with users of his own.
async fn executed(pid: i32) {
    let program = |of: &str| {
        let program = std::fs::metadata(format!("/proc/{of}/exe"));
        program.ok().map(|program| (program.dev(), program.ino()))
    };
    for _ in 0..50 {
        if program(&pid.to_string()) != program("self") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// # Errors
/// A container's own users are not those of who has the PID namespace that it is to join.
fn check(are_the_same: bool, of: &str) -> Result<(), AgentError> {
    if are_the_same {
        return Ok(());
    }
    let text =
        format!("users of a container's own can't enter the PID namespace of {of} with others");
    Err(AgentError::Invalid(text))
}
