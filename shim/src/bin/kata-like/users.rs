//! The user namespace of another container, which a `config.json` names by the process that stands for that. It is in
//! another machine: what both can have alike are the mappings.

use crate::mappings::{Mappings, is_of_users};
use crate::record::Home;
use oci_spec::runtime::{Linux, LinuxNamespace, Spec};
use std::path::Path;

/// Gives a spec without mappings those of the container below `root` whose user namespace it names; any other is left for
/// whoever reads on.
pub(crate) fn adopt(spec: &mut Spec, root: &Path) {
    let Some(linux) = spec.linux_mut() else { return };
    let mapped = |linux: &Linux| {
        let has = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
        has(linux.uid_mappings()) || has(linux.gid_mappings())
    };
    let pid = linux.namespaces().iter().flatten().find(|n| is_of_users(n)).and_then(process_of);
    let Some(pid) = pid.filter(|_| !mapped(linux)) else { return };
    let records = Home::all(root).into_iter().filter_map(|home| home.load().ok());
    let theirs = records.filter(|record| record.monitor.pid == pid && record.monitor.lives());
    let Some(Mappings { users, groups }) = theirs.map(|record| record.mappings).next() else {
        return;
    };
    if users.is_empty()
        && let Some(namespaces) = linux.namespaces_mut()
    {
        namespaces.retain(|namespace| !is_of_users(namespace));
    }
    linux.set_uid_mappings(Some(users)).set_gid_mappings(Some(groups));
}

/// Whose it is, of paths that name a process's.
fn process_of(namespace: &LinuxNamespace) -> Option<i32> {
    let path = namespace.path().as_ref()?.to_str()?;
    path.strip_prefix("/proc/")?.strip_suffix("/ns/user")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(linux: &Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": linux})).unwrap()
    }

    fn with_own(more: &Value) -> Spec {
        let mut linux = json!({"namespaces": [
            {"type": "pid"},
            {"type": "user", "path": format!("/proc/{}/ns/user", std::process::id())},
        ]});
        for (name, value) in more.as_object().unwrap() {
            linux[name] = value.clone();
        }
        spec(&linux)
    }

    #[test]
    fn the_mappings_of_the_container_that_is_named_are_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let of_users = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
        let of_groups = json!([{"containerID": 0, "hostID": 200_000, "size": 20}]);
        let target = spec(&json!({"namespaces": [{"type": "user"}],
            "uidMappings": of_users, "gidMappings": of_groups}));
        let adopted = |spec: &Spec| {
            let mut spec = spec.clone();
            adopt(&mut spec, root.path());
            spec
        };
        let bare = with_own(&json!({}));
        assert_eq!(adopted(&bare), bare, "nobody's");
        // This process stands for it.
        let reservation = Home::new(root.path(), "c1").unwrap().reserve().unwrap();
        reservation.record(&target, "/b".into(), false).unwrap();
        let like = json!({"uidMappings": of_users, "gidMappings": of_groups});
        assert_eq!(adopted(&bare), with_own(&like));
        assert_eq!(Mappings::of(&adopted(&bare)), Mappings::of(&target));
        let own = with_own(&json!({"uidMappings": of_groups, "gidMappings": of_groups}));
        assert_eq!(adopted(&own), own, "it says itself");
        let other = spec(&json!({"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]}));
        assert_eq!(adopted(&other), other);
        reservation.record(&spec(&json!({"namespaces": []})), "/b".into(), false).unwrap();
        let none = adopted(&bare);
        let left = none.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert_eq!(left.len(), 1, "it has none, and so has this: {left:?}");
    }
}
