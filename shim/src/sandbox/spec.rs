//! What is a sandbox's own, and not one of its containers'.

use crate::host::cgroup::Placement;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Longest host name that Linux takes, bytes.
const MAX_HOSTNAME: usize = 64;

/// As the spec of its first container says it, or a sandbox that is made before it has containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The guest's host name; none: the sandbox's id, as far as it is one.
    pub hostname: Option<String>,
    /// Where its processes go on the host; none: they stay where their maker is.
    pub cgroup: Option<Placement>,
    /// What the machine has room for, whatever its containers ask for.
    pub size: PodSize,
    /// What a pod has that no container stands for. None: the sandbox ends with its last container, and what else it has
    /// (its network, sysctls, memory that is shared) comes with the first, and is then the guest's.
    pub pod: Option<PodSpec>,
}

/// A pod without a container of its own: it is there until it is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// The host's network namespace whose interfaces the guest is to have.
    pub network: Option<PathBuf>,
    /// Kernel parameters of the guest.
    pub sysctls: BTreeMap<String, String>,
    /// Containers that share the pod's processes share all of the guest's, so also its agent.
    pub pids_of_guest: bool,
    /// What its containers are shown, unless they have something else there.
    pub files: Vec<PodFile>,
}

/// A file that a pod's containers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFile {
    /// Where they have it: in `/etc`.
    pub destination: PathBuf,
    /// What is in it.
    pub text: String,
}

/// What all containers of a pod together may use; 0: nobody said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSize {
    /// Bytes.
    pub memory: u64,
    /// Processor time in each period, microseconds.
    pub cpu_quota: u64,
    /// Microseconds.
    pub cpu_period: u64,
}

/// A change of that: what is not named stays as it is; 0: no limit any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodResize {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processor time in each period, microseconds.
    pub cpu_quota: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
}

impl SandboxSpec {
    /// The host name that the guest of sandbox `id` gets.
    pub(super) fn hostname(&self, id: &str) -> String {
        self.hostname.clone().unwrap_or_else(|| id.chars().take(MAX_HOSTNAME).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_called_as_its_spec_says_or_by_its_id() {
        let named = SandboxSpec { hostname: Some("web-0".into()), ..Default::default() };
        assert_eq!(named.hostname("id"), "web-0");
        assert_eq!(SandboxSpec::default().hostname(&"i".repeat(76)), "i".repeat(64));
    }
}
