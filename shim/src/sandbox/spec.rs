//! What is a sandbox's own, and not one of its containers'.

use crate::host::cgroup::Placement;

/// Longest host name that Linux takes, bytes.
const MAX_HOSTNAME: usize = 64;

/// As the spec of its first container says it. What else a pod has (its network, sysctls, memory that is shared) comes
/// with the create of its pause container, and is then the guest's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The guest's host name; none: the sandbox's id, as far as it is one.
    pub hostname: Option<String>,
    /// Where its processes go on the host; none: they stay where their maker is.
    pub cgroup: Option<Placement>,
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
