//! What needs no machine; pods that run are among the end-to-end tests.

use super::*;
use crate::socket::Socket;
use crate::task::events::Containers;
use crate::task::slot::{Owner, Slot};
use protobuf::Message;
use protocol::cri::PodSandboxConfig;
use sandbox::SandboxSpec;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use ttrpc::Code;

/// The one of sandbox `s`, whose machine can't be launched; what its containers' spec says of it, or nothing.
fn pod(spec: Option<SandboxSpec>) -> (Arc<Pod>, Arc<Notify>) {
    let owner = Owner { namespace: "ns".into(), id: "s".into(), spec };
    let (events, _told) = mpsc::unbounded_channel();
    let slot = Slot::launch(owner, Some("/nowhere/config.toml".into()), events);
    let finished = Arc::new(Notify::new());
    let (containers, socket) = (Containers::default(), Socket::at(Path::new("/nowhere/s")));
    let task = Arc::new(TaskService::new(slot, containers, socket, finished.clone()));
    (Arc::new(Pod { task, life: Arc::default() }), finished)
}

fn request(id: &str) -> CreateSandboxRequest {
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: PodSandboxConfig::new().write_to_bytes().unwrap(),
        ..Any::default()
    };
    let options = Some(options).into();
    CreateSandboxRequest { sandbox_id: id.into(), options, ..Default::default() }
}

#[tokio::test]
async fn nothing_is_launched_before_it_is_told_what_it_is_to_be() {
    let (pod, _) = pod(None);
    assert_eq!(pod.start("s").await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    assert_eq!(pod.status("s").unwrap_err().code(), Code::FAILED_PRECONDITION);
    assert_eq!(pod.wait("s").await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    pod.stop("s").await.unwrap();
    let refused = pod.create(CreateSandboxRequest { options: None.into(), ..request("s") }).await;
    assert_eq!(refused.unwrap_err().code(), Code::INVALID_ARGUMENT);
    let failed = pod.create(request("s")).await.unwrap_err().to_string();
    assert!(failed.contains("/nowhere/config.toml"), "{failed}");
    // A shim that holds nothing is given up as any other.
    let end = Duration::from_secs(10);
    tokio::time::timeout(end, pod.task.abandoned(Duration::from_millis(40), end)).await.unwrap();
    assert_eq!(pod.create(request("s")).await.unwrap_err().code(), Code::ALREADY_EXISTS);
}

#[tokio::test]
async fn a_sandbox_of_containers_is_not_made_again_and_others_are_not_known() {
    let (pod, _) = pod(Some(SandboxSpec::default()));
    assert_eq!(pod.create(request("s")).await.unwrap_err().code(), Code::ALREADY_EXISTS);
    assert_eq!(pod.create(request("other")).await.unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(pod.ping("other").unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(pod.stop("other").await.unwrap_err().code(), Code::NOT_FOUND);
}

#[tokio::test]
async fn the_shim_ends_with_the_shutdown() {
    let (pod, finished) = pod(None);
    pod.task.end_told().await;
    tokio::time::timeout(Duration::from_secs(10), finished.notified()).await.unwrap();
}

#[tokio::test]
async fn the_method_that_the_crate_lacks_is_served() {
    let (pod, _) = pod(None);
    let services = service(pod.task.clone());
    let methods = &services["containerd.runtime.sandbox.v1.Sandbox"].methods;
    assert_eq!(methods.len(), 10);
    let refused = update::Update(pod).answer(&[0xff]).await.unwrap_err();
    assert_eq!(refused.code(), Code::INVALID_ARGUMENT);
}
