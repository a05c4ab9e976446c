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

#[tokio::test]
async fn a_container_that_could_not_be_made_decides_nothing() {
    let f = fixture().await;
    f.sandbox.create(f.member("a", "bad", true)).await.unwrap_err();
    f.sandbox.create(f.member("b", "sh", false)).await.unwrap();
    let refused = f.sandbox.create(f.member("c", "joins", true)).await.unwrap_err();
    assert!(matches!(refused, Error::Unimplemented(_)), "{refused}");
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_pod_that_was_told_of_is_there_without_containers_until_it_is_stopped() {
    let sysctls = [("net.core.somaxconn".to_owned(), "7".to_owned())].into();
    let mut f = fixture_of(Some(PodSpec { sysctls, ..PodSpec::default() })).await;
    f.sandbox.set_up().await.unwrap();
    assert_eq!(f.guest.sysctls.lock().unwrap()["net.core.somaxconn"], "7");
    for _ in 0..2 {
        f.sandbox.create(f.member("a", "joins-pod", true)).await.unwrap();
        f.sandbox.delete("a", "").await.unwrap();
    }
    let patience = Duration::from_millis(300);
    assert!(tokio::time::timeout(patience, f.sandbox.ended()).await.is_err(), "it goes on");
    f.sandbox.stop().await;
    assert!(f.sandbox.ended().await, "that was wanted");
    assert!(matches!(f.events.recv().await, Some(SandboxEvent::Created { .. })));
}

#[tokio::test]
async fn in_a_pod_of_the_hosts_processes_containers_have_the_guests() {
    let f = fixture_of(Some(PodSpec { pids_of_guest: true, ..PodSpec::default() })).await;
    f.sandbox.create(f.member("a", "sh", true)).await.unwrap();
    let refused = f.sandbox.create(f.member("b", "joins-pod", true)).await.unwrap_err();
    assert!(refused.to_string().contains("alone"), "{refused}");
    f.sandbox.stop().await;
}

#[tokio::test]
async fn the_end_of_a_pod_that_nobody_wanted_is_told_as_such() {
    let f = fixture_of(Some(PodSpec::default())).await;
    f.sandbox.set_up().await.unwrap();
    control::send(&f.vmm, &VmEvent::Exited { reason: ExitReason::Stopped }, &[]).unwrap();
    assert!(!f.sandbox.ended().await);
    f.sandbox.stop().await;
}
