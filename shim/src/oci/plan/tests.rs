use super::disks::{Disk, DiskMount, Overlay, Source, Upper};
use super::host::{Directory, DirectoryId, Kind, Memory, MountOf, Numbers};
use super::*;
use oci_spec::runtime::LinuxDeviceCgroup;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The process that stands for the sandbox.
const VMM: u32 = 4711;

/// A host with a device, 8:16, an image, and a directory on which something else is mounted at every look.
struct TestHost;

impl Host for TestHost {
    fn kind(&self, path: &Path) -> Kind {
        match path.to_str() {
            Some("/dev/sdb") => Kind::Block((8, 16)),
            Some("/image") => Kind::File,
            _ => Kind::Other,
        }
    }

    fn block_device(&self, numbers: Numbers) -> Option<PathBuf> {
        (numbers == (8, 16)).then(|| "/dev/sdb".into())
    }

    fn memory(&self, path: &Path) -> Option<Memory> {
        let there = path.starts_with("/tmpfs");
        there.then_some(Memory { size: 4096, mode: 0o1777, owner: (7, 8) })
    }

    fn part(&self, path: &Path) -> Option<Directory> {
        let below = path.strip_prefix("/parts").ok()?.to_owned();
        let wholes = ["/else", "/tmpfs/volumes/kubernetes.io~empty-dir/cache"].map(PathBuf::from);
        Some(Directory { wholes: wholes.into(), below, mode: 0o750, owner: (1, 2) })
    }

    fn mount_of(&self, path: &Path) -> MountOf {
        static MOUNTS: AtomicU64 = AtomicU64::new(1);
        let mount = if path.ends_with("mounted-anew") { &MOUNTS } else { &AtomicU64::new(0) };
        let mount = mount.fetch_add(1, Ordering::Relaxed);
        let id = DirectoryId { mount, device: 1, inode: 1 };
        let is_directory = path.starts_with("/disk") || path == Path::new("/flags/directory");
        let directory = is_directory.then_some(id);
        let options = if path.starts_with("/flags") { vec!["ro", "noatime"] } else { vec![] };
        let options = options.into_iter().map(String::from).collect();
        let mounts_below = path == Path::new("/mounted") || path.ends_with("with-mounts");
        MountOf { options, mounts_below, directory }
    }

    fn processors(&self) -> NumberList {
        NumberList::parse("0-3").unwrap()
    }
}

fn container(id: &str, spec: Spec) -> Result<Plan> {
    super::container(id, spec, Vec::new(), Writes::ToSnapshot, VMM, &TestHost)
}

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
        "linux": {"cgroupsPath": "system.slice:cri:abc", "namespaces": [{"type": "pid"}, {"type": "mount"}]},
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
            "blockIO": {"weight": 10, "leafWeight": 10},
        });
    });
    for absent in
        ["/hooks", "/process/apparmorProfile", "/process/selinuxLabel", "/linux/mountLabel"]
    {
        assert_eq!(out.pointer(absent), None, "{absent}");
    }
    let kept = json!({"cpu": {"shares": 5}, "memory": {"limit": 1000}, "pids": {"limit": 7},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 7}], "blockIO": {"weight": 10}});
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
    let none = Created::default();
    let out = update(br#"{"memory": {"limit": 7}, "cpu": {"quota": 5, "cpus": ""}}"#, &none);
    let out = serde_json::to_value(out.unwrap().for_guest).unwrap();
    assert_eq!(out, json!({"memory": {"limit": 7}, "cpu": {"quota": 5}}));
    let refused = update(br#"{"cpu": {"cpus": "0-1"}}"#, &none).unwrap_err().to_string();
    assert!(refused.contains("/cpu/cpus"), "{refused}");
    assert!(update(b"7", &none).unwrap_err().to_string().contains("linux.resources"));
}

#[test]
fn an_update_may_name_again_what_was_left_out_at_the_create() {
    let asked = json!({"cpu": {"cpus": "0-1", "shares": 2}, "rdma": {"mlx": {"hcaHandles": 1}}});
    let plan = container("c1", spec(|v| v["linux"]["resources"] = asked.clone())).unwrap();
    let mut merged = asked;
    merged["cpu"]["shares"] = json!(7);
    let created = Created { resources: plan.resources, ..Created::default() };
    let out = update(merged.to_string().as_bytes(), &created).unwrap();
    assert_eq!(serde_json::to_value(out.for_guest).unwrap(), json!({"cpu": {"shares": 7}}));
    merged["cpu"]["cpus"] = json!("0-2");
    let refused = update(merged.to_string().as_bytes(), &created).unwrap_err().to_string();
    assert!(refused.contains("/cpu/cpus") && !refused.contains("rdma"), "{refused}");
}

#[test]
fn only_portable_devices_are_left() {
    let out = planned(|v| {
        v["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
            {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/dev/odd", "type": "b", "major": 10, "minor": 229},
            {"path": "/dev/pipe", "type": "p"},
        ]);
    });
    let paths: Vec<_> =
        out["linux"]["devices"].as_array().unwrap().iter().map(|d| &d["path"]).collect();
    assert_eq!(paths, ["/dev/fuse", "/dev/kmsg", "/dev/pipe"]);
}

#[test]
fn what_only_a_host_has_is_refused_by_name() {
    let cases = [
        ("/process/apparmorProfile", json!("my-profile")),
        ("/process/selinuxLabel", json!("system_u:system_r:my_t:s0")),
        ("/linux/mountLabel", json!("nonsense")),
        ("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"})),
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
        exec(br#"{"args": ["a"], "cwd": "/", "apparmorProfile": "my-profile"}"#).unwrap_err();
    assert!(error.to_string().contains("my-profile"), "{error}");
}

#[test]
fn deadlines_want_every_processor_of_the_hosts() {
    let planned = |policy: &str, cpus: &str| {
        container(
            "c1",
            spec(|v| {
                v["process"]["scheduler"] = json!({"policy": policy, "runtime": 42_000});
                v["linux"]["resources"] = json!({"cpu": {"cpus": cpus}});
            }),
        )
    };
    for cpus in ["0", "0-2", "1-9", "none"] {
        let error = planned("SCHED_DEADLINE", cpus).unwrap_err().to_string();
        let words = "process scheduler can't be used together with AllowedCPUs";
        assert!(error.contains(words), "{error}");
    }
    for (policy, cpus) in
        [("SCHED_DEADLINE", "0,1-3"), ("SCHED_DEADLINE", ""), ("SCHED_BATCH", "0")]
    {
        assert!(planned(policy, cpus).is_ok(), "{policy} {cpus}");
    }
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
fn an_exec_is_read_as_runc_reads_it() {
    let process =
        br#"{"Args": ["a"], "cwd": "/", "env": null, "capabilities": {"bounding": ["CAP_NEW"]}}"#;
    let out: serde_json::Value = serde_json::from_slice(&exec(process).unwrap()).unwrap();
    assert_eq!((&out["args"], &out["user"]["uid"]), (&json!(["a"]), &json!(0)));
    for (text, words) in [
        (r#"{"args": ["a"]}"#, "Cwd property must not be empty"),
        (r#"{"cwd": "/"}"#, "args must not be empty"),
        (r#"{"cwd": "/", "args": ["a"], "apparmorProfile": "mine"}"#, "apparmorProfile"),
    ] {
        let error = exec(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_is_large_stays_on_the_host_or_is_refused_by_its_length() {
    let large = "x".repeat(5 << 20);
    let plan = container("c1", spec(|v| v["annotations"] = json!({"a": large}))).unwrap();
    assert_eq!(plan.annotations["a"], large);
    assert!(plan.spec_json.len() < 4096 && plan.left_out.iter().all(|at| !at.contains("annot")));
    let hook = json!({"path": "/x"});
    let told = container(
        "c1",
        spec(|v| {
            v["annotations"] = json!({"a": "b"});
            v["hooks"] = json!({"startContainer": [hook]});
        }),
    );
    assert!(
        String::from_utf8(told.unwrap().spec_json).unwrap().contains(r#""annotations":{"a":"b"}"#)
    );
    for change in ["env", "args"] {
        let spec = spec(|v| v["process"][change] = json!([large]));
        let error = container("c1", spec).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::InvalidArgument(_)) && text.contains("at most"), "{text}");
    }
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
        let ipc = "/proc/7/ns/ipc";
        with(name, json!([{"type": "network"}, {"type": "ipc", "path": ipc}, {"type": "mount"}]))
            .unwrap();
    }
}

#[test]
fn owners_of_a_bind_are_mapped_on_the_host() {
    let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 10}]);
    let owners = |mount: serde_json::Value| {
        let spec = spec(|v| {
            v["root"]["path"] = "/bundle/rootfs".into();
            v["mounts"] = json!([mount]);
            v["linux"]["namespaces"] = json!([{"type": "user"}, {"type": "mount"}]);
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
    let mut inside = with(&["bind", "idmap"]);
    inside["source"] = "/bundle/rootfs/mnt".into();
    let refused = owners(inside).unwrap_err().to_string();
    assert!(refused.contains("the mount on /d") && refused.contains("own root"), "{refused}");
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
        ..Bind::default()
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
fn a_bind_is_read_only_below_only_where_it_is_asked_for() {
    let plan = |source: &str, options: &[&str]| {
        let mount = json!({"destination": "/d", "source": source, "options": options});
        let plan = container("c1", spec(|v| v["mounts"] = json!([mount]))).unwrap();
        let mounts = plan.spec.mounts().as_ref().unwrap();
        let options = mounts[0].options().clone().unwrap();
        (plan.binds[0].read_only, plan.binds[0].read_only_below, options.contains(&"ro".to_owned()))
    };
    assert_eq!(plan("/mounted", &["rbind", "ro"]), (true, false, false));
    // With nothing mounted below, the guest's one mount may say what it is.
    assert_eq!(plan("/srv", &["rbind", "ro"]), (true, false, true));
    assert_eq!(plan("/mounted", &["bind", "ro"]), (true, false, true));
    assert_eq!(plan("/mounted", &["rbind", "ro", "rro"]), (true, true, true));
    assert_eq!(plan("/mounted", &["rbind", "rro"]), (true, true, false));
}

#[test]
fn each_kind_of_propagation_says_whether_a_bind_follows_the_host() {
    let follows = |options: &[&str]| {
        let mount =
            json!({"destination": "/d", "type": "bind", "source": "/srv", "options": options});
        container("c1", spec(|v| v["mounts"] = json!([mount]))).unwrap().binds[0].follows
    };
    for (options, expected) in [
        (&["rbind"][..], Follows::All),
        (&["rbind", "rslave"], Follows::All),
        (&["rbind", "rprivate", "slave", "ro"], Follows::Nothing),
        (&["rbind", "private", "rslave"], Follows::Below),
        (&["bind", "slave", "private"], Follows::Below),
        (&["rbind", "unbindable"], Follows::Below),
        (&["rbind", "rslave", "rprivate"], Follows::Nothing),
        (&["rbind", "runbindable"], Follows::Nothing),
    ] {
        assert_eq!(follows(options), expected, "{options:?}");
    }
}

#[test]
fn a_source_in_the_containers_root_is_the_guests() {
    let plan = container(
        "c1",
        spec(|v| {
            v["root"]["path"] = "/bundle/rootfs".into();
            v["mounts"] = json!([
                {"destination": "/bundle/rootfs/final", "source": "/bundle/rootfs/mnt/x", "options": ["rbind"]},
                {"destination": "/bundle/rootfs2", "source": "/bundle/rootfs/../other", "options": ["bind"]},
                {"destination": "/whole", "source": "/bundle/rootfs", "options": ["bind"]},
            ]);
        }),
    )
    .unwrap();
    let mounts = plan.spec.mounts().as_ref().unwrap();
    let inside = Path::new("/run/kata-like/shared/c1/rootfs/mnt/x");
    assert_eq!(mounts[0].source().as_deref(), Some(inside));
    let to: Vec<_> = mounts.iter().map(|mount| mount.destination().display().to_string()).collect();
    assert_eq!(to, ["/final", "/bundle/rootfs2", "/whole"]);
    let sources: Vec<_> = plan.binds.iter().map(|bind| bind.source.display().to_string()).collect();
    assert_eq!(sources, ["/bundle/rootfs/../other", "/bundle/rootfs"]);
}

#[test]
fn a_user_namespace_of_the_hosts_is_one_of_the_same_mappings() {
    let path = json!([{"type": "user", "path": "/proc/1/ns/user"}, {"type": "mount"}]);
    let mapping = json!([{"containerID": 0, "hostID": 5, "size": 10}]);
    let out = planned(|v| {
        v["linux"]["namespaces"] = path.clone();
        v["linux"]["uidMappings"] = mapping.clone();
        v["linux"]["gidMappings"] = mapping.clone();
    });
    assert_eq!(out["linux"]["namespaces"], json!([{"type": "user"}, {"type": "mount"}]));
    let refused = container("c1", spec(|v| v["linux"]["namespaces"] = path)).unwrap_err();
    let words = ["user namespace /proc/1/ns/user", "uidMappings and gidMappings"];
    assert!(words.iter().all(|words| refused.to_string().contains(words)), "{refused}");
}

#[test]
fn what_a_spec_lacks_is_named() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 8] = [
        (|v| drop(v.as_object_mut().unwrap().remove("process")), "no process"),
        (|v| drop(v.as_object_mut().unwrap().remove("root")), "no root"),
        (|v| v["process"]["args"] = json!([]), "process.args"),
        (|v| v["process"]["cwd"] = "".into(), "Cwd property must not be empty"),
        (|v| v["process"]["cwd"] = "tmp".into(), "Cwd must be an absolute path"),
        (|v| v["linux"]["namespaces"] = json!([{"type": "pid"}]), "mount namespace"),
        (|v| drop(v.as_object_mut().unwrap().remove("linux")), "mount namespace"),
        (|v| v["mounts"] = json!([{"destination": "/d", "type": "bind"}]), "/d"),
    ];
    for (change, name) in cases {
        let error = container("c1", spec(change)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

const NODE: &str = "/run/kata-like/disks/c1/0";
const MOUNTED: &str = "/run/kata-like/disks/c1/mount-0";

fn disk(source: &str, read_only: bool, exclusive: bool, numbers: Numbers) -> Disk {
    Disk { source: Source::One(source.into()), read_only, exclusive, numbers }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn a_root_on_a_device_or_an_image_is_mounted_in_the_guest() {
    let root = |fstype: &str, source: &str, options: &[&str]| {
        let layer = RootfsMount {
            fstype: fstype.into(),
            source: source.into(),
            options: words(options),
            ..Default::default()
        };
        super::container("c1", spec(|_| ()), vec![layer], Writes::ToSnapshot, VMM, &TestHost)
            .unwrap()
    };
    let plan = root("ext4", "/dev/sdb", &["rw", "discard"]);
    assert!(plan.rootfs.is_empty());
    assert_eq!(plan.spec.root().as_ref().unwrap().path(), Path::new(MOUNTED));
    assert_eq!(plan.disks.disks, [disk("/dev/sdb", false, true, (8, 16))]);
    let options = words(&["rw", "discard"]);
    assert_eq!(
        plan.disks.mounts,
        [DiskMount { disk: 0, part: None, fstype: "ext4".into(), options }]
    );
    let plan = root("erofs", "/image", &["loop"]);
    assert_eq!(plan.disks.disks, [disk("/image", true, true, (0, 0))]);
    assert!(plan.disks.mounts[0].options.is_empty());
    // What the guest's kernel has not, and what is no disk, stays the host's to mount.
    for (fstype, source) in [("xfs", "/dev/sdb"), ("overlay", "overlay"), ("ext4", "/nowhere")] {
        let plan = root(fstype, source, &[]);
        assert_eq!((plan.rootfs.len(), plan.disks), (1, Disks::default()), "{fstype} {source}");
    }
}

#[test]
fn what_is_written_to_a_root_goes_to_a_disk_that_is_made_where_the_host_would_have_put_it() {
    let covered = |fstype: &str, options: &[&str], writes, change: fn(&mut Value)| {
        let source = "/snapshot".to_owned();
        let options = words(options);
        let layer = RootfsMount { fstype: fstype.into(), source, options, ..Default::default() };
        super::container("c1", spec(change), vec![layer], writes, VMM, &TestHost).unwrap()
    };
    let writable = |v: &mut Value| {
        v["root"] = json!({"path": "/bundle/rootfs"});
        v["mounts"] =
            json!([{"destination": "/x", "source": "/bundle/rootfs/y", "options": ["bind"]}]);
    };
    let in_pod = |v: &mut Value| {
        v["root"] = json!({"path": "/bundle/rootfs"});
        v["annotations"] = json!({"io.kubernetes.cri.container-type": "container"});
    };
    let read_only = |v: &mut Value| v["root"]["readonly"] = true.into();
    let (always, in_pods) = (Writes::ToDisk(4096), Writes::ToDiskInPods(4096));
    let overlay = ["workdir=/s/work", "upperdir=/s/fs", "lowerdir=/l"];
    let bind = ["rbind", "rw"];
    for (fstype, options, directory, writes, named, change) in [
        ("overlay", &overlay[..], "/s/fs", always, false, writable as fn(&mut Value)),
        ("overlay", &overlay, "/s/fs", always, false, in_pod),
        ("overlay", &overlay, "/s/fs", in_pods, true, in_pod),
        ("bind", &bind, "/snapshot", always, false, writable),
    ] {
        let plan = covered(fstype, options, writes, change);
        assert!(plan.rootfs[0].options.ends_with(&words(&["ro"])), "{:?}", plan.rootfs);
        assert!(!plan.rootfs[0].options.contains(&"rw".to_owned()));
        let source = Source::Blank { directory: directory.into(), bytes: 4096, named };
        let made = Disk { source, ..disk(directory, false, true, (0, 0)) };
        assert_eq!(plan.disks.disks, [made]);
        let upper = Upper::Passing(0);
        assert_eq!(plan.disks.root, Some(Overlay { lower: 0..0, upper, options: vec![] }));
        let root = Path::new("/run/kata-like/disks/c1/root");
        assert_eq!(plan.spec.root().as_ref().unwrap().path(), root);
    }
    let plan = covered("overlay", &overlay, always, writable);
    let source = plan.spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
    let there = Path::new("/run/kata-like/disks/c1/root/y");
    assert_eq!(source, there, "what is in the root is there where the guest has it");
    // Only mount points are made there.
    let plan = covered("overlay", &overlay, always, read_only);
    assert_eq!((plan.disks.root.unwrap().upper, plan.disks.disks.len()), (Upper::Memory, 0));
    // These are to be the host's, nothing is written to them, and of others it is not known where. In a directory that is
    // bound a name would be the container's, and without one nobody counts what the disk takes.
    for (fstype, options, writes, change) in [
        ("overlay", &overlay[..], Writes::ToSnapshot, in_pod as fn(&mut Value)),
        ("overlay", &overlay, in_pods, writable),
        ("bind", &bind, in_pods, in_pod),
        ("overlay", &["lowerdir=/l:/m", "ro"], always, writable),
        ("xfs", &["rw"], always, writable),
    ] {
        let plan = covered(fstype, options, writes, change);
        assert_eq!((plan.rootfs.len(), plan.disks), (1, Disks::default()));
    }
}

/// Two layers, and what the snapshotter says of what is above them.
fn layered(first: &[(&str, &str)], above: &[&str]) -> Vec<RootfsMount> {
    let mount = |fstype: &str, source: &str, options: &[&str]| RootfsMount {
        fstype: fstype.into(),
        source: source.into(),
        options: words(options),
        ..Default::default()
    };
    let lower = format!("lowerdir={{{{ overlay {} {} }}}}", first.len(), first.len() + 1);
    let options = [above, &[lower.as_str()]].concat();
    let first = first.iter().map(|(fstype, source)| mount(fstype, source, &["rw", "loop"]));
    let layers = ["/top", "/bottom"].map(|source| mount("erofs", source, &["ro", "loop"]));
    first.chain(layers).chain([mount("format/mkdir/overlay", "overlay", &options)]).collect()
}

#[test]
fn layers_are_one_disk_and_their_overlay_is_the_guests() {
    let writable = |v: &mut Value| v["root"] = json!({"path": "rootfs"});
    let in_pod = |v: &mut Value| {
        v["root"] = json!({"path": "rootfs"});
        v["annotations"] = json!({"io.kubernetes.cri.container-type": "container"});
    };
    let plan = |rootfs, change: fn(&mut Value), writes| {
        super::container("c1", spec(change), rootfs, writes, VMM, &TestHost)
    };
    let (always, in_pods) = (Writes::ToDisk(4096), Writes::ToDiskInPods(4096));
    let layers = Disk {
        source: Source::Several(vec!["/top".into(), "/bottom".into()]),
        ..disk("", true, true, (0, 0))
    };
    let layer = |part| DiskMount {
        disk: 0,
        part: Some(part),
        fstype: "erofs".into(),
        options: words(&["ro"]),
    };
    let image = [("ext4", "/image")];
    let of_image = ["workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"];
    let of_host = ["workdir=/s/work", "upperdir=/s/fs"];
    let root = |upper| Some(Overlay { lower: 0..2, upper, options: vec![] });
    for writes in [Writes::ToSnapshot, in_pods] {
        let made = plan(layered(&image, &of_image), in_pod, writes).unwrap();
        assert_eq!(made.disks.disks, [layers.clone(), disk("/image", false, true, (0, 0))]);
        assert_eq!(made.disks.mounts[..2], [layer(0), layer(1)]);
        assert_eq!((made.disks.mounts[2].disk, made.disks.mounts[2].part), (1, None));
        assert_eq!((made.rootfs.len(), made.disks.root), (0, root(Upper::Lasting(2))));
        let at = Path::new("/run/kata-like/disks/c1/root");
        assert_eq!(made.spec.root().as_ref().unwrap().path(), at);
    }
    // A disk of the container's own, where the snapshotter's would have been.
    for (rootfs, writes, directory, named) in [
        (layered(&image, &of_image), always, "/", false),
        (layered(&[], &of_host), always, "/s/fs", false),
        (layered(&[], &of_host), in_pods, "/s/fs", true),
    ] {
        let made = plan(rootfs, in_pod, writes).unwrap();
        let source = Source::Blank { directory: directory.into(), bytes: 4096, named };
        let own = Disk { source, ..disk("", false, true, (0, 0)) };
        assert_eq!(made.disks.disks, [layers.clone(), own]);
        assert_eq!(made.disks.root, root(Upper::Passing(2)));
    }
    // Nothing is written to these.
    for (rootfs, upper) in [
        (layered(&image, &of_image), Upper::Memory),
        (layered(&[], &of_host), Upper::Memory),
        (layered(&[], &[]), Upper::None),
    ] {
        let made = plan(rootfs, |_| (), always).unwrap();
        assert_eq!((made.disks.disks, made.disks.root), (vec![layers.clone()], root(upper)));
    }
    let refused = plan(layered(&[], &of_host), writable, in_pods).unwrap_err().to_string();
    assert!(refused.contains("/s/fs") && refused.contains("default_size"), "{refused}");
}

#[test]
fn a_mount_from_a_disk_becomes_a_bind_of_what_the_guest_mounts() {
    let plan = container(
        "c1",
        spec(|v| {
            v["mounts"] = json!([{"destination": "/data", "type": "ext4", "source": "/image",
                "options": ["ro", "nosuid", "loop", "data=journal"]}]);
        }),
    );
    let plan = plan.unwrap();
    assert!(plan.binds.is_empty());
    assert_eq!(plan.disks.disks, [disk("/image", true, true, (0, 0))]);
    assert_eq!(plan.disks.mounts[0].options, ["ro", "nosuid", "data=journal"]);
    let mount = serde_json::to_value(&plan.spec.mounts().as_ref().unwrap()[0]).unwrap();
    let expected = json!({"destination": "/data", "type": "bind", "source": MOUNTED,
        "options": ["ro", "nosuid", "bind"]});
    assert_eq!(mount, expected);
    let refused = container(
        "c1",
        spec(|v| {
            v["mounts"] = json!([{"destination": "/data", "type": "xfs", "source": "/dev/sdb"}]);
        }),
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("/data") && refused.contains("ext4 and erofs"), "{refused}");
}

#[test]
fn a_bind_of_a_device_becomes_one_of_the_guests_node() {
    let plan = container(
        "c1",
        spec(|v| {
            v["mounts"] = json!([
                {"destination": "/dev/xvda", "source": "/dev/sdb", "options": ["bind", "ro"]},
                {"destination": "/dir", "source": "/dir", "options": ["bind"]},
            ]);
        }),
    );
    let plan = plan.unwrap();
    assert_eq!(plan.disks.disks, [disk("/dev/sdb", true, false, (8, 16))]);
    let mounts = plan.spec.mounts().as_ref().unwrap();
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new(NODE)));
    assert_eq!(plan.binds[0].source, Path::new("/dir"));
    assert_eq!(mounts[1].source().as_deref(), Some(&*guest_paths::bind("c1", 0)));
}

fn with_device(rules: &serde_json::Value) -> Plan {
    let plan = container(
        "c1",
        spec(|v| {
            v["linux"]["devices"] =
                json!([{"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16}]);
            v["linux"]["resources"]["devices"] = rules.clone();
        }),
    );
    plan.unwrap()
}

fn rules_of(plan: &Plan) -> Vec<LinuxDeviceCgroup> {
    let linux = plan.spec.linux().as_ref().unwrap();
    linux.resources().as_ref().unwrap().devices().clone().unwrap()
}

#[test]
fn a_device_becomes_a_disk_and_only_rules_for_disks_are_left() {
    let rule = |minor: u32, access: &str| json!({"allow": true, "type": "b", "major": 8, "minor": minor, "access": access});
    let none = json!({"allow": false, "access": "rwm"});
    let plan = with_device(&json!([none, rule(0, "rwm"), rule(16, "rm")]));
    assert_eq!(plan.disks.disks, [disk("/dev/sdb", true, false, (8, 16))]);
    assert_eq!(plan.spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(), 1);
    let minors: Vec<_> = rules_of(&plan).iter().map(LinuxDeviceCgroup::minor).collect();
    assert_eq!(minors, [None, Some(16)]);
    let plan = with_device(&json!([none, rule(16, "rwm")]));
    assert!(!plan.disks.disks[0].read_only);
}

#[test]
fn a_container_with_leave_for_every_device_gets_no_disks() {
    let plan = with_device(&json!([{"allow": true, "access": "rwm"}]));
    assert_eq!(plan.disks, Disks::default());
    assert!(plan.spec.linux().as_ref().unwrap().devices().as_ref().unwrap().is_empty());
    assert_eq!(
        plan.left_out,
        ["/linux/devices", "/process/apparmorProfile", "/process/selinuxLabel"]
    );
}

#[test]
fn limits_of_block_io_are_kept_for_disks() {
    let limit = |minor: u32| json!({"major": 8, "minor": minor, "rate": 7});
    let plan = container(
        "c1",
        spec(|v| {
            v["mounts"] = json!([{"destination": "/data", "type": "ext4", "source": "/dev/sdb"}]);
            v["linux"]["resources"]["blockIO"] = json!({"weight": 10,
                "throttleReadBpsDevice": [limit(0), limit(16)],
                "throttleWriteBpsDevice": [limit(0)]});
        }),
    );
    let spec = serde_json::to_value(plan.unwrap().spec).unwrap();
    let expected = json!({"weight": 10, "throttleReadBpsDevice": [limit(16)]});
    assert_eq!(spec["linux"]["resources"]["blockIO"], expected);
    let updated = json!({"blockIO": {"throttleWriteIOPSDevice": [limit(0)]}}).to_string();
    let none = Created::default();
    assert!(update(updated.as_bytes(), &none).unwrap().for_guest.block_io().is_some());
    let updated = update(br#"{"blockIO": {"weight": 750}}"#, &none).unwrap().for_guest;
    assert_eq!(updated.block_io().as_ref().unwrap().weight(), Some(750));
    let leaf = br#"{"blockIO": {"leafWeight": 10}}"#;
    for of in [none, Created { has_cgroup: true, ..Created::default() }] {
        let refused = update(leaf, &of).unwrap_err().to_string();
        assert!(refused.contains("/blockIO/leafWeight"), "{refused}");
    }
}

#[test]
fn flags_of_the_hosts_mount_are_cleared_but_in_a_user_namespace_which_is_shown_them() {
    let taken = |source: &str, options: &[&str], mapped: bool| {
        let plan = container(
            "c1",
            spec(|v| {
                let options = [&["bind"], options].concat();
                v["mounts"] = json!([{"destination": "/d", "source": source, "options": options}]);
                if mapped {
                    let ids = json!([{"containerID": 0, "hostID": 7, "size": 9}]);
                    v["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
                    v["linux"]["uidMappings"] = ids.clone();
                    v["linux"]["gidMappings"] = ids;
                }
            }),
        );
        let plan = plan.unwrap();
        let bind = &plan.binds[0];
        let timed = plan.timed.iter().map(|timed| timed.flags.join(",")).collect::<Vec<_>>();
        let source = plan.spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
        assert_eq!(source, plan.timed.first().map_or(guest_paths::bind("c1", 0), |t| t.at.clone()));
        (bind.read_only, bind.writable, timed.join(" "))
    };
    let directory = "/flags/directory";
    assert_eq!(taken(directory, &[], false), (true, false, String::new()));
    assert_eq!(taken(directory, &["nosuid"], false), (false, true, String::new()));
    assert_eq!(taken("/plain", &["nosuid"], false), (false, false, String::new()));
    assert_eq!(taken(directory, &["nosuid"], true), (true, false, "noatime".into()));
    assert_eq!(taken(directory, &["relatime"], true), (true, false, String::new()));
    assert_eq!(taken("/flags/file", &[], true), (true, false, String::new()));
}

#[test]
fn what_is_by_the_hosts_numbers_is_left_to_its_cgroup() {
    let limit = |minor: u32| json!({"major": 8, "minor": minor, "rate": 7});
    let named = json!({
        "cpu": {"cpus": "1", "mems": "0"},
        "blockIO": {"throttleReadBpsDevice": [limit(0), limit(16)],
            "weightDevice": [{"major": 8, "minor": 16, "weight": 444}]},
        "unified": {"cpuset.cpus": "1", "cpuset.mems": "0", "io.max": "8:0 rbps=7", "pids.max": "9",
            "io.bfq.weight": "333"},
    });
    let created = Created { disks: vec![(8, 16)], has_cgroup: true, ..Created::default() };
    let Update { asked, for_guest } = update(named.to_string().as_bytes(), &created).unwrap();
    assert_eq!(asked.cpu().as_ref().unwrap().cpus().as_deref(), Some("1"));
    let expected = json!({"cpu": {}, "blockIO": {"throttleReadBpsDevice": [limit(16)]},
        "unified": {"pids.max": "9"}});
    assert_eq!(serde_json::to_value(for_guest).unwrap(), expected);
    let nowhere = Created { has_cgroup: false, ..created };
    let refused = update(named.to_string().as_bytes(), &nowhere).unwrap_err().to_string();
    for at in [
        "/cpu/cpus",
        "/cpu/mems",
        "/unified/cpuset.cpus",
        "/unified/io.max",
        "/blockIO/weightDevice",
    ] {
        assert!(refused.contains(at), "{refused}");
    }
    let plan = container("c1", spec(|v| v["linux"]["resources"] = named)).unwrap();
    let of_host = plan.left_out.iter().filter_map(|at| at.strip_prefix("/linux/resources"));
    assert!(of_host.clone().count() > 4 && of_host.clone().all(is_hosts_limit), "{plan:?}");
}

fn of_pod(kind: &str, change: impl FnOnce(&mut serde_json::Value)) -> Result<Plan> {
    let spec = spec(|v| {
        v["annotations"] = json!({"io.kubernetes.cri.container-type": kind});
        v["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "mount"}, {"type": "network", "path": "/run/netns/n"}]);
        change(v);
    });
    container("c1", spec)
}

fn namespaces(plan: &Plan) -> Vec<String> {
    let all = plan.spec.linux().as_ref().unwrap().namespaces().iter().flatten();
    all.map(|namespace| namespace.typ().to_string()).collect()
}

#[test]
fn a_pods_pause_container_is_in_the_guests_namespaces_as_the_others_are() {
    let pause = of_pod("sandbox", |v| v["linux"]["sysctl"]["kernel.shmmni"] = "7".into()).unwrap();
    assert_eq!(namespaces(&pause), ["pid", "mnt"]);
    assert_eq!((pause.part, pause.joins_pids), (Part::Pause, None));
    assert!(pause.spec.hostname().is_none(), "the guest has it");
    assert!(!pause.left_out.contains(&"/hostname".to_owned()));
    assert!(pause.spec.linux().as_ref().unwrap().sysctl().is_none(), "the guest has them");
    assert_eq!(pause.sysctls, [("kernel.shmmni".to_owned(), "7".to_owned())].into());
    let path = |kind: &str| json!({"type": kind, "path": format!("/proc/{VMM}/ns/{kind}")});
    let member = |pid: serde_json::Value| {
        of_pod("container", |v| {
            v["linux"]["namespaces"] = json!([pid, {"type": "mount"}, path("ipc"), path("uts"),
                {"type": "network", "path": format!("/proc/{VMM}/ns/net")}]);
        })
    };
    let own = member(json!({"type": "pid"})).unwrap();
    assert_eq!((namespaces(&own), own.joins_pids), (words(&["pid", "mnt"]), None));
    let joined = member(path("pid")).unwrap();
    assert_eq!(
        (pause.network.as_deref(), joined.network.as_deref()),
        (Some(Path::new("/run/netns/n")), None)
    );
    assert_eq!((namespaces(&joined), joined.joins_pids), (words(&["mnt"]), Some(VMM)));
    let others = member(json!({"type": "pid", "path": "/proc/1/ns/pid"})).unwrap();
    assert_eq!(others.joins_pids, Some(1), "whose that is the sandbox knows");
    let others = member(json!({"type": "pid", "path": "/proc/self/ns/pid"})).unwrap_err();
    assert!(others.to_string().contains("/proc/self/ns/pid"), "{others}");
    let alone = of_pod("alone", |v| {
        v["linux"]["namespaces"] = json!([path("pid"), {"type": "mount"}]);
    });
    assert!(alone.unwrap_err().to_string().contains("can't join"));
}

#[test]
fn a_pod_in_the_hosts_network_or_ipc_namespace_is_refused() {
    for (kind, word) in [("network", "network"), ("ipc", "IPC")] {
        let error = of_pod("sandbox", |v| {
            let all = v["linux"]["namespaces"].as_array_mut().unwrap();
            all.retain(|namespace| namespace["type"] != kind);
        });
        let error = error.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unimplemented(_)) && text.contains(word), "{text}");
    }
}

#[test]
fn memory_of_a_pods_is_the_guests_and_shared_by_its_containers() {
    let plan = |kind: &str, source: &str, to: &str| {
        let mount = json!({"destination": to, "type": "bind", "source": source,
            "options": ["rbind", "ro"]});
        of_pod(kind, |v| v["mounts"] = json!([mount])).unwrap()
    };
    let source = |plan: &Plan| plan.spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
    let pause = plan("sandbox", "/tmpfs/shm", "/dev/shm");
    let member = plan("container", "/tmpfs/shm", "/dev/shm");
    assert_eq!(source(&pause), source(&member));
    assert!(source(&pause).starts_with("/run/kata-like/memory"));
    assert!(member.binds.is_empty() && member.volumes == pause.volumes);
    assert_eq!(member.volumes[0].memory.size, 4096);
    let empty_dir = "/tmpfs/volumes/kubernetes.io~empty-dir/cache";
    let cache = plan("container", empty_dir, "/cache");
    assert_ne!(source(&cache), source(&member));
    let part = plan("container", "/parts/a/b", "/cache");
    assert_eq!(part.volumes, cache.volumes);
    let of_cache = source(&cache);
    let [sub_path] = &part.sub_paths[..] else { panic!("{part:?}") };
    assert_eq!(sub_path.source, Path::new(&of_cache).join("a/b"));
    assert_eq!((sub_path.mode, sub_path.owner), (0o750, (1, 2)));
    assert_eq!(Path::new(&source(&part)), sub_path.at);
    let others = [
        plan("neither", "/parts/a", "/cache"),
        plan("container", "/tmpfs/volumes/kubernetes.io~secret/key", "/key"),
        plan("neither", "/disk/volumes/kubernetes.io~empty-dir/cache", "/cache"),
        plan("neither", "/tmpfs/shm", "/dev/shm"),
    ];
    assert!(others.iter().all(|plan| plan.volumes.is_empty() && plan.binds.len() == 1));
}

#[test]
fn memory_of_a_pods_with_users_of_its_own_is_theirs() {
    let plan = |source: &str| {
        let mapping = json!([{"containerID": 0, "hostID": 70000, "size": 65536}]);
        let mount = json!({"destination": "/cache", "type": "bind", "source": source,
            "options": ["rbind"], "uidMappings": mapping, "gidMappings": mapping});
        of_pod("container", |v| v["mounts"] = json!([mount])).unwrap()
    };
    let whole = plan("/tmpfs/volumes/kubernetes.io~empty-dir/cache");
    assert!(whole.binds.is_empty());
    assert_eq!(whole.volumes[0].memory.owner, (70007, 70008));
    let mount = &whole.spec.mounts().as_ref().unwrap()[0];
    assert_eq!((mount.uid_mappings(), mount.gid_mappings()), (&None, &None));
    let part = plan("/parts/a/b");
    assert_eq!(part.volumes, whole.volumes);
    assert_eq!(part.sub_paths[0].owner, (70001, 70002));
}

#[test]
fn an_empty_dir_on_the_hosts_disk_is_one_for_all_containers_of_a_pod() {
    let plan = |kind: &str, source: &str, options: &[&str]| {
        let mount =
            json!({"destination": "/d", "type": "bind", "source": source, "options": options});
        of_pod(kind, |v| v["mounts"] = json!([mount])).unwrap()
    };
    let mount = |plan: &Plan| plan.spec.mounts().as_ref().unwrap()[0].clone();
    let source = "/disk/volumes/kubernetes.io~empty-dir/data";
    let [writes, reads] = ["rw", "ro"].map(|how| plan("container", source, &["rbind", how]));
    assert_eq!(mount(&writes).source(), mount(&reads).source());
    assert!(mount(&writes).source().as_ref().unwrap().starts_with("/run/kata-like/volumes"));
    assert!(mount(&reads).options().as_ref().unwrap().contains(&"ro".to_owned()));
    assert!(writes.binds.is_empty() && writes.shared_binds == reads.shared_binds);
    let [SharedBind { place, bind }] = &writes.shared_binds[..] else { panic!("{writes:?}") };
    assert!(protocol::ids::check(place).is_err(), "{place} could be a container");
    assert!(bind.source == Path::new(source) && bind.recursive && !bind.read_only);
    // What asks for something else is another.
    let follows = plan("container", source, &["rbind", "rprivate"]);
    assert_ne!(follows.shared_binds[0].place, *place);
    let part = format!("{source}/part");
    for (kind, source) in [("neither", source), ("container", "/data"), ("container", &part)] {
        let plan = plan(kind, source, &["rbind", "ro"]);
        assert!(plan.shared_binds.is_empty() && plan.binds[0].read_only, "{source}");
    }
}

#[test]
fn a_directory_that_is_written_is_one_for_all_containers_of_a_pod() {
    let plan = |kind: &str, source: &str, options: &[&str]| {
        let mount =
            json!({"destination": "/d", "type": "bind", "source": source, "options": options});
        of_pod(kind, |v| v["mounts"] = json!([mount])).unwrap()
    };
    let volume = "/disk/volumes/kubernetes.io~csi/data/mount";
    let [one, other] = [["rbind", "rw"], ["rbind", "rw"]].map(|o| plan("container", volume, &o));
    assert!(one.binds.is_empty() && one.shared_binds.len() == 1);
    assert_eq!(one.shared_binds, other.shared_binds);
    assert!(!one.shared_binds[0].bind.read_only);
    // That a container only reads is held on the host.
    let reads = plan("container", volume, &["rbind", "ro"]);
    assert!(reads.shared_binds.is_empty() && reads.binds[0].read_only);
    // One that is a file, or no pod's.
    assert!(plan("container", "/image", &["rbind", "rw"]).shared_binds.is_empty());
    assert!(plan("neither", volume, &["rbind", "rw"]).shared_binds.is_empty());
    // A volume that its image asks for is the container's, and goes with it.
    assert!(plan("container", "/disk/containers/c1/volumes/1", &["rbind"]).shared_binds.is_empty());
    // What is mounted there would be held as long as the pod lives.
    assert!(plan("container", "/disk/with-mounts", &["rbind"]).shared_binds.is_empty());
    // A container that starts again finds what is mounted there by then.
    let [before, after] = [(); 2].map(|()| plan("container", "/disk/mounted-anew", &["rbind"]));
    assert_eq!(before.shared_binds[0].bind, after.shared_binds[0].bind);
    assert_ne!(before.shared_binds[0].place, after.shared_binds[0].place);
}

#[test]
fn where_a_pod_has_no_memory_of_the_hosts_its_containers_share_what_each_says_is_its() {
    let plan = |kind: &str, options: &[&str]| {
        let mount = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": options});
        of_pod(kind, |v| v["mounts"] = json!([mount])).unwrap()
    };
    let said = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let member = plan("container", &said);
    let mount = &member.spec.mounts().as_ref().unwrap()[0];
    assert_eq!(mount.source().as_ref(), Some(&member.volumes[0].path));
    assert_eq!(mount.options().as_ref().unwrap().join(","), "nosuid,noexec,nodev,rbind");
    assert_eq!(member.volumes[0].memory, Memory { size: 64 << 20, mode: 0o1777, owner: (0, 0) });
    assert_eq!(plan("container", &["size=1g", "mode=700"]).volumes[0].memory.size, 1 << 30);
    assert_eq!(plan("container", &["size=50%"]).volumes[0].memory.size, 0);
    for kind in ["sandbox", "neither"] {
        assert!(plan(kind, &said).volumes.is_empty(), "{kind}");
    }
}

#[test]
fn a_mount_that_the_host_is_to_see_is_refused_by_name() {
    let mount = |root: &str, kind: &str, option: &str| {
        let mount =
            json!({"destination": "/d", "type": kind, "source": "/home", "options": [option]});
        let spec = spec(|v| {
            v["mounts"] = json!([mount]);
            v["linux"]["rootfsPropagation"] = json!(root);
        });
        container("c1", spec).map_err(|e| e.to_string())
    };
    for root in ["shared", "rshared"] {
        for option in ["shared", "rshared"] {
            let error = mount(root, "bind", option).unwrap_err();
            assert!(error.contains(&format!("the mount on /d: {option}:")), "{error}");
        }
        mount(root, "bind", "rslave").unwrap();
        mount(root, "tmpfs", "rshared").unwrap();
    }
    // The host sees nothing of these, on runc either; whatever else has them in the container does.
    for root in ["", "rslave", "private"] {
        let plan = mount(root, "bind", "shared").unwrap();
        assert_eq!(plan.binds[0].follows, Follows::All);
        let options = plan.spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
        assert!(options.contains(&"shared".to_owned()), "{options:?}");
    }
}
