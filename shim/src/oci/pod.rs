//! Which pod a container belongs to, by what an engine has noted in its spec.
//!
//! Both containerd's CRI and CRI-O make a container that holds a pod's namespaces, the pause container, and then the
//! pod's others. The first one's id is the pod's.

use std::collections::HashMap;
use std::hash::BuildHasher;

/// By these annotations containers belong to one sandbox, the first that is there counts.
const SANDBOX: [&str; 3] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.containerd.kata-like.v2.group",
];

/// Says `sandbox` or `container`.
const KIND: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// What a container is to its sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    /// Of no pod.
    #[default]
    Alone,
    /// The one that holds a pod's namespaces and lives as long as the pod.
    Pause,
    /// Any other of a pod.
    Member,
}

impl Part {
    /// What the annotations of a spec say.
    pub fn of<S: BuildHasher>(annotations: &HashMap<String, String, S>) -> Self {
        match KIND.iter().find_map(|name| annotations.get(*name)).map(String::as_str) {
            Some("sandbox") => Self::Pause,
            Some("container") => Self::Member,
            _ => Self::Alone,
        }
    }
}

/// The id of the sandbox that a container with these annotations belongs to, where they name one.
pub fn sandbox_id<S: BuildHasher>(annotations: &HashMap<String, String, S>) -> Option<&str> {
    SANDBOX.iter().find_map(|name| annotations.get(*name)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_annotations_are_understood() {
        let all = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            owned.collect::<HashMap<_, _>>()
        };
        let pause = all(&[
            ("io.kubernetes.cri.sandbox-id", "p"),
            ("io.kubernetes.cri.container-type", "sandbox"),
        ]);
        assert_eq!((sandbox_id(&pause), Part::of(&pause)), (Some("p"), Part::Pause));
        let member = all(&[
            ("io.kubernetes.cri-o.SandboxID", "q"),
            ("io.kubernetes.cri-o.ContainerType", "container"),
        ]);
        assert_eq!((sandbox_id(&member), Part::of(&member)), (Some("q"), Part::Member));
        let odd = all(&[("io.kubernetes.cri.container-type", "other")]);
        assert_eq!((sandbox_id(&odd), Part::of(&odd)), (None, Part::Alone));
    }
}
