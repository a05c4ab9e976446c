//! Whose users a container's are.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

/// Mappings of users and groups; none: the container has no user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mappings {
    pub(crate) users: Vec<LinuxIdMapping>,
    pub(crate) groups: Vec<LinuxIdMapping>,
}

impl Mappings {
    /// Those of a container with this spec.
    pub(crate) fn of(spec: &Spec) -> Self {
        let Some(linux) = spec.linux() else { return Self::default() };
        if !linux.namespaces().iter().flatten().any(is_of_users) {
            return Self::default();
        }
        let list = |list: &Option<Vec<_>>| list.clone().unwrap_or_default();
        Self { users: list(linux.uid_mappings()), groups: list(linux.gid_mappings()) }
    }
}

/// Whether it is one of users.
pub(crate) fn is_of_users(namespace: &LinuxNamespace) -> bool {
    namespace.typ() == LinuxNamespaceType::User
}
