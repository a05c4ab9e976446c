use super::*;
use serde_json::json;

fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut value = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"user": {"uid": 1, "gid": 2}, "cwd": "/", "args": ["sh"],
                    "apparmorProfile": "p", "selinuxLabel": "l", "noNewPrivileges": true},
        "hostname": "h",
        "hooks": {"prestart": [{"path": "/bin/false"}]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"cgroupsPath": "system.slice:cri:abc", "namespaces": [{"type": "pid"}]},
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn planned(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
    serde_json::to_value(container("c1", spec(change)).unwrap().spec).unwrap()
}

#[test]
fn the_root_is_the_guests_and_the_rest_of_it_stays() {
    let out = planned(|_| ());
    assert_eq!(out["root"], json!({"path": "/run/kata-like/shared/c1/rootfs", "readonly": true}));
    assert_eq!(out["process"]["args"], json!(["sh"]));
    assert_eq!(out["process"]["noNewPrivileges"], true);
    assert_eq!(out["hostname"], "h");
}

#[test]
fn host_policy_is_removed() {
    let out = planned(|v| {
        v["linux"]["mountLabel"] = "x".into();
        v["linux"]["resources"] = json!({
            "cpu": {"shares": 5, "cpus": "0-3", "mems": "0"},
            "memory": {"limit": 1000},
            "pids": {"limit": 7},
            "blockIO": {"weight": 10},
        });
    });
    for absent in
        ["/hooks", "/process/apparmorProfile", "/process/selinuxLabel", "/linux/mountLabel"]
    {
        assert_eq!(out.pointer(absent), None, "{absent}");
    }
    let kept = json!({"cpu": {"shares": 5}, "memory": {"limit": 1000}, "pids": {"limit": 7}});
    assert_eq!(out["linux"]["resources"], kept);
}

#[test]
fn what_is_left_out_is_named() {
    let plan =
        container("c1", spec(|v| v["linux"]["resources"] = json!({"network": {"classID": 1}})));
    let expected =
        ["/hooks", "/linux/resources/network", "/process/apparmorProfile", "/process/selinuxLabel"];
    assert_eq!(plan.unwrap().left_out, expected);
}

#[test]
fn an_update_sets_what_is_the_guests_and_names_what_is_not() {
    let out = update(br#"{"memory": {"limit": 7}, "cpu": {"quota": 5, "cpus": ""}}"#).unwrap();
    let out: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out, json!({"memory": {"limit": 7}, "cpu": {"quota": 5}}));
    let refused = update(br#"{"cpu": {"cpus": "0-1"}}"#).unwrap_err().to_string();
    assert!(refused.contains("/cpu/cpus"), "{refused}");
    assert!(update(b"7").unwrap_err().to_string().contains("linux.resources"));
}

#[test]
fn only_portable_devices_are_left() {
    let out = planned(|v| {
        v["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/dev/odd", "type": "b", "major": 10, "minor": 229},
        ]);
    });
    let paths: Vec<_> =
        out["linux"]["devices"].as_array().unwrap().iter().map(|d| &d["path"]).collect();
    assert_eq!(paths, ["/dev/fuse"]);
}

#[test]
fn the_cgroup_is_the_guests() {
    assert_eq!(planned(|_| ())["linux"]["cgroupsPath"], "/kata-like/c1");
}

#[test]
fn namespaces_of_the_sandbox_are_shared_and_new_ones_are_made() {
    let out = planned(|v| {
        v["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "mount"}, {"type": "network"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
        ]);
    });
    assert_eq!(out["linux"]["namespaces"], json!([{"type": "pid"}, {"type": "mount"}]));
}

#[test]
fn a_namespace_that_can_not_be_joined_is_named() {
    let spec = spec(|v| {
        v["linux"]["namespaces"] = json!([{"type": "pid", "path": "/proc/1/ns/pid"}]);
    });
    let error = container("c1", spec).unwrap_err().to_string();
    assert!(error.contains("/proc/1/ns/pid"), "{error}");
}

#[test]
fn bind_mounts_are_numbered_and_other_mounts_untouched() {
    let plan = container(
        "c1",
        spec(|v| {
            v["mounts"] = json!([
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rw"]},
                {"destination": "/etc/hosts", "source": "/etc/hosts", "options": ["bind", "ro"]},
            ]);
        }),
    )
    .unwrap();
    let bind =
        |source: &str, read_only, recursive| Bind { source: source.into(), read_only, recursive };
    assert_eq!(plan.binds, [bind("/srv/data", false, true), bind("/etc/hosts", true, false)]);
    let sources: Vec<_> = plan
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.source().clone().unwrap().display().to_string())
        .collect();
    let guest = "/run/kata-like/shared/c1/mounts";
    assert_eq!(sources, ["proc".into(), format!("{guest}/0"), format!("{guest}/1")]);
}

#[test]
fn what_a_spec_lacks_is_named() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 4] = [
        (|v| drop(v.as_object_mut().unwrap().remove("process")), "no process"),
        (|v| drop(v.as_object_mut().unwrap().remove("root")), "no root"),
        (|v| v["process"]["args"] = json!([]), "process.args"),
        (|v| v["mounts"] = json!([{"destination": "/d", "type": "bind"}]), "/d"),
    ];
    for (change, name) in cases {
        let error = container("c1", spec(change)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
