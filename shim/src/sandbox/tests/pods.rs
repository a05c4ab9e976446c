//! Containers of a pod, and what of theirs the guest is told.

use super::*;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

impl Fixture {
    /// One of the pod, which shares its PID namespace with the pause container or not.
    pub(super) fn member(&self, id: &str, command: &str, shares: bool) -> NewContainer {
        let shared =
            serde_json::json!({"type": "pid", "path": format!("/proc/{}/ns/pid", vmm_pid())});
        let own = serde_json::json!({"type": "pid"});
        self.with_pids(id, command, if shares { &shared } else { &own })
    }

    /// One that has the PID namespace of this process of the host.
    fn joining(&self, id: &str, command: &str, pid: u32) -> NewContainer {
        let path = format!("/proc/{pid}/ns/pid");
        self.with_pids(id, command, &serde_json::json!({"type": "pid", "path": path}))
    }

    fn with_pids(&self, id: &str, command: &str, pids: &serde_json::Value) -> NewContainer {
        let mut new = self.container(id, command);
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
async fn each_container_of_a_pod_has_a_process_that_ends_with_it() {
    let f = fixture().await;
    let [a, b] = [f.member("a", "sh", false), f.member("b", "sh", false)];
    let (a, b) = (f.sandbox.create(a).await.unwrap(), f.sandbox.create(b).await.unwrap());
    assert!(a != b && ![a, b].contains(&vmm_pid()), "{a} {b}");
    let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    assert_eq!(f.sandbox.start("a").await.unwrap(), a);
    assert_eq!(f.sandbox.state("a", "").unwrap().pid, a);
    f.sandbox.kill("a", "", 9, false).await.unwrap();
    f.sandbox.wait("a", "").await.unwrap();
    assert!(!lives(a) && lives(b), "before the exit is told");
    assert_eq!(f.sandbox.delete("a", "").await.unwrap().0, a);
    // Of one that could not be made nothing is left.
    f.sandbox.create(f.member("c", "bad", false)).await.unwrap_err();
    f.sandbox.stop().await;
    assert!(!lives(b));
    assert!(f.sandbox.0.stand_ins.gone(Duration::ZERO).await);
}

#[tokio::test]
async fn who_kills_the_process_that_stands_for_a_container_kills_the_container_alone() {
    let f = fixture().await;
    let a = f.sandbox.create(f.member("a", "sh", false)).await.unwrap();
    f.sandbox.create(f.member("b", "sh", false)).await.unwrap();
    f.sandbox.start("a").await.unwrap();
    nix::sys::signal::kill(Pid::from_raw(a.cast_signed()), Signal::SIGKILL).unwrap();
    assert_eq!(f.sandbox.wait("a", "").await.unwrap().status, 137);
    assert_eq!(f.sandbox.state("b", "").unwrap().phase, Phase::Created);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn another_containers_pids_are_joined_by_the_living_process_that_stands_for_it() {
    let f = fixture().await;
    let a = f.sandbox.create(f.member("a", "sh", false)).await.unwrap();
    f.sandbox.create(f.joining("b", "joins-a", a)).await.unwrap();
    let refuse = async |id: &str, pid: u32| {
        let error = f.sandbox.create(f.joining(id, "sh", pid)).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::InvalidArgument(_)), "{text}");
        assert!(text.contains(&format!("/proc/{pid}/ns/pid")) && text.contains(id), "{text}");
    };
    // That of the host's first, of who runs this test, and of one that has ended.
    refuse("c", 1).await;
    refuse("d", std::os::unix::process::parent_id()).await;
    f.sandbox.kill("a", "", 9, false).await.unwrap();
    f.sandbox.wait("a", "").await.unwrap();
    refuse("e", a).await;
    f.sandbox.stop().await;
}

#[tokio::test]
async fn without_a_process_to_stand_for_it_there_is_no_container() {
    let f = fixture().await;
    let program = f.dir.path().join("stand-in");
    std::fs::write(&program, "#!/bin/sh\necho no such user >&2\n").unwrap();
    let error = f.sandbox.create(f.member("a", "sh", false)).await.unwrap_err();
    assert!(error.chain().contains("no such user"), "{}", error.chain());
    std::fs::remove_file(&program).unwrap();
    let error = f.sandbox.create(f.member("a", "sh", false)).await.unwrap_err();
    assert!(error.chain().contains("stand-in"), "{}", error.chain());
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

#[tokio::test]
async fn what_all_containers_mount_is_shown_once_until_the_pods_end() {
    let f = fixture().await;
    let directory = f.dir.path().join("volumes/kubernetes.io~empty-dir/data");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("file"), "").unwrap();
    for id in ["a", "b"] {
        let mut new = f.member(id, "sh", false);
        let mount = serde_json::json!({"destination": "/data", "type": "bind", "source": directory,
            "options": ["rbind", "rw"]});
        new.spec.set_mounts(Some(serde_json::from_value(serde_json::json!([mount])).unwrap()));
        // A root of its own, elsewhere than what is mounted.
        let root = tempfile::tempdir_in(f.dir.path()).unwrap().keep();
        new.spec.root_mut().as_mut().unwrap().set_path(root);
        f.sandbox.create(new).await.unwrap();
    }
    let shown = || {
        let entries = std::fs::read_dir(f.sandbox.0.paths.shared()).unwrap().flatten();
        let places = entries.map(|entry| entry.path().join("mounts/0/file"));
        places.filter(|file| file.exists()).count()
    };
    assert_eq!(shown(), 1);
    f.sandbox.delete("a", "").await.unwrap();
    assert_eq!(shown(), 1);
    let entries = f.sandbox.0.paths.layout();
    f.sandbox.stop().await;
    let left: Vec<_> = std::fs::read_dir(entries).unwrap().flatten().collect();
    assert!(
        left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')),
        "{left:?}"
    );
}
