//! Containers of a pod, and what of theirs the guest is told.

use super::*;

impl Fixture {
    /// One of the pod, which shares its PID namespace with the pause container or not.
    fn member(&self, id: &str, command: &str, shares: bool) -> NewContainer {
        let mut new = self.container(id, command);
        let mut pids = serde_json::json!({"type": "pid"});
        if shares {
            pids["path"] = "/proc/77/ns/pid".into();
        }
        let mut spec = serde_json::to_value(&new.spec).unwrap();
        spec["annotations"] = serde_json::json!({"io.kubernetes.cri.container-type": "container"});
        spec["linux"]["namespaces"] = serde_json::json!([pids, {"type": "mount"}]);
        new.spec = serde_json::from_value(spec).unwrap();
        new
    }
}

#[tokio::test]
async fn what_names_the_sandboxs_pids_is_the_pause_containers_in_the_guest() {
    let f = fixture().await;
    f.sandbox.create(f.member("a", "joins", true)).await.unwrap();
    f.sandbox.create(f.member("b", "sh", false)).await.unwrap();
    f.sandbox.create(f.member("c", "joins", true)).await.unwrap();
    f.sandbox.stop().await;
}

#[tokio::test]
async fn in_a_pod_that_shares_no_pids_another_containers_can_not_be_joined() {
    let f = fixture().await;
    f.sandbox.create(f.member("a", "sh", false)).await.unwrap();
    let error = f.sandbox.create(f.member("b", "joins", true)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unimplemented(_)) && text.contains("container b"), "{text}");
    f.sandbox.stop().await;
}
