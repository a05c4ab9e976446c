use super::*;
use serde_json::json;

fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut value = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"user": {"uid": 1, "gid": 2}, "cwd": "/", "args": ["sh"],
                    "apparmorProfile": "docker-default",
                    "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2", "noNewPrivileges": true},
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
        v["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0:c1,c2".into();
        v["linux"]["resources"] = json!({
            "cpu": {"shares": 5, "cpus": "0-3", "mems": "0"},
            "memory": {"limit": 1000},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 7}],
            "blockIO": {"weight": 10},
        });
    });
    for absent in
        ["/hooks", "/process/apparmorProfile", "/process/selinuxLabel", "/linux/mountLabel"]
    {
        assert_eq!(out.pointer(absent), None, "{absent}");
    }
    let kept = json!({"cpu": {"shares": 5}, "memory": {"limit": 1000}, "pids": {"limit": 7},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 7}]});
    assert_eq!(out["linux"]["resources"], kept);
}

#[test]
fn what_is_left_out_is_named() {
    let plan =
        container("c1", spec(|v| v["linux"]["resources"] = json!({"network": {"classID": 1}})));
    let expected =
        ["/linux/resources/network", "/process/apparmorProfile", "/process/selinuxLabel"];
    assert_eq!(plan.unwrap().left_out, expected);
}

#[test]
fn an_update_sets_what_is_the_guests_and_names_what_is_not() {
    let out = update(br#"{"memory": {"limit": 7}, "cpu": {"quota": 5, "cpus": ""}}"#).unwrap();
    let out = serde_json::to_value(out).unwrap();
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
            {"path": "/dev/pipe", "type": "p"},
        ]);
    });
    let paths: Vec<_> =
        out["linux"]["devices"].as_array().unwrap().iter().map(|d| &d["path"]).collect();
    assert_eq!(paths, ["/dev/fuse", "/dev/pipe"]);
}

#[test]
fn what_only_a_host_has_is_refused_by_name() {
    let cases = [
        ("/process/apparmorProfile", json!("my-profile")),
        ("/process/selinuxLabel", json!("system_u:system_r:my_t:s0")),
        ("/linux/mountLabel", json!("nonsense")),
        ("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"})),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
        ("/linux/netDevices", json!({"eth0": {}})),
        ("/hooks/createContainer", json!([{"path": "/bin/true"}])),
    ];
    for (pointer, value) in cases {
        let spec = spec(|v| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            v.pointer_mut(parent).unwrap()[key] = value;
        });
        let error = container("c1", spec).unwrap_err();
        assert!(matches!(error, Error::Unimplemented(_)), "{error}");
        assert!(error.to_string().contains(pointer), "{error}");
    }
    let error =
        exec(br#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "apparmorProfile": "my-profile"}"#)
            .unwrap_err();
    assert!(error.to_string().contains("my-profile"), "{error}");
}

#[test]
fn an_exec_loses_what_engines_add() {
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"],
        "apparmorProfile": "docker-default"});
    let out = exec(process.to_string().as_bytes()).unwrap();
    let out: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&out["args"], out.get("apparmorProfile")), (&json!(["a"]), None));
}

#[test]
fn hooks_are_the_hosts_but_for_the_one_in_the_container() {
    let hook = json!([{"path": "/bin/false"}]);
    let plan = container("c1", spec(|v| v["hooks"]["startContainer"] = hook.clone())).unwrap();
    assert_eq!(serde_json::to_value(&plan.spec).unwrap()["hooks"], json!({"startContainer": hook}));
    #[allow(deprecated)]
    let prestart = plan.hooks.prestart().clone();
    assert_eq!(prestart.unwrap().len(), 1);
}

#[test]
fn sysctls_of_a_namespace_that_is_shared_with_the_host_are_refused() {
    let with = |name: &str, namespaces: serde_json::Value| {
        let spec = spec(|v| {
            v["linux"]["sysctl"][name] = "1".into();
            v["linux"]["namespaces"] = namespaces;
        });
        container("c1", spec)
    };
    for name in ["net.ipv4.ip_forward", "net/ipv4/ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"]
    {
        let error = with(name, json!([{"type": "pid"}])).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        with(name, json!([{"type": "network"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}]))
            .unwrap();
    }
}

#[test]
fn owners_of_a_bind_are_mapped_on_the_host() {
    let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 10}]);
    let owners = |mount: serde_json::Value| {
        let spec = spec(|v| {
            v["mounts"] = json!([mount]);
            v["linux"]["namespaces"] = json!([{"type": "user"}]);
            v["linux"]["uidMappings"] = mapping(7);
            v["linux"]["gidMappings"] = mapping(8);
        });
        let plan = container("c1", spec)?;
        assert_eq!(plan.left_out.iter().find(|at| at.starts_with("/mounts")), None);
        let mounts = serde_json::to_value(plan.spec.mounts()).unwrap();
        assert_eq!(mounts[0]["options"], json!(["bind"]));
        Ok::<_, Error>(plan.binds[0].owners.clone().unwrap().users[0].host_id())
    };
    let with = |options: &[&str]| json!({"destination": "/d", "source": "/s", "options": options});
    assert_eq!(owners(with(&["bind", "idmap"])).unwrap(), 7);
    let mut own = with(&["bind", "ridmap"]);
    own["uidMappings"] = mapping(9);
    assert!(owners(own.clone()).unwrap_err().to_string().contains("/d"));
    own["gidMappings"] = mapping(9);
    assert_eq!(owners(own).unwrap(), 9);
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
    let bind = |source: &str, read_only, recursive| Bind {
        source: source.into(),
        read_only,
        recursive,
        owners: None,
    };
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
