//! `clean-up`: what goes on where containerd's `delete` had no time to wait for a helper's end.

use sandbox::paths::SandboxPaths;
use sandbox::persist::{ProcessId, SandboxState};
use std::path::Path;
use std::process::{Command, Output};

fn clean_up(states: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-like-v2"))
        .args(["-namespace", "ns", "-id", "a", "-states"])
        .arg(states)
        .arg("clean-up")
        .output()
        .unwrap()
}

fn state(owner: ProcessId, helper: ProcessId) -> SandboxState {
    SandboxState { owner, helpers: vec![helper], cgroup: None, uid: None, network: None }
}

#[test]
fn what_a_dead_owner_left_goes_and_a_living_ones_stays() {
    let dir = tempfile::tempdir().unwrap();
    let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
    paths.create().unwrap();
    let mut helper = Command::new("sleep").arg("1000").spawn().unwrap();
    let id = ProcessId::of(helper.id().cast_signed()).unwrap();
    let living = ProcessId::of(std::process::id().cast_signed()).unwrap();
    state(living, id).write(&paths).unwrap();
    assert!(clean_up(dir.path()).status.success());
    assert!(paths.root().exists() && helper.try_wait().unwrap().is_none());
    let mut owner = Command::new("true").spawn().unwrap();
    let dead = ProcessId::of(owner.id().cast_signed()).unwrap();
    owner.wait().unwrap();
    state(dead, id).write(&paths).unwrap();
    let said = clean_up(dir.path());
    assert!(said.status.success(), "{said:?}");
    assert!(!paths.root().exists(), "the directory is left");
    assert!(!helper.wait().unwrap().success(), "the helper was killed");
    assert!(clean_up(dir.path()).status.success(), "nothing is left to do");
}

#[test]
fn a_delete_looks_where_its_server_has_noted_that_the_states_are() {
    let (states, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let paths = SandboxPaths::new(states.path(), "ns", "a").unwrap();
    paths.create().unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    let dead = ProcessId::of(ended.id().cast_signed()).unwrap();
    ended.wait().unwrap();
    state(dead, dead).write(&paths).unwrap();
    let delete = || {
        Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-like-v2"))
            .args(["-namespace", "ns", "-id", "a", "-bundle"])
            .arg(bundle.path())
            .arg("delete")
            .current_dir(bundle.path())
            .output()
            .unwrap()
    };
    assert!(delete().status.success());
    assert!(paths.root().exists(), "without a word of it");
    let noted = states.path().as_os_str().as_encoded_bytes();
    std::fs::write(bundle.path().join("kata-like-state"), noted).unwrap();
    let said = delete();
    assert!(said.status.success(), "{said:?}");
    assert!(!paths.root().exists(), "its id is taken for ever");
}
