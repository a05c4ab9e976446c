use super::*;
use oci_spec::runtime::{LinuxResources, Process, Spec};

fn read(text: &str) -> Result<Spec, serde_json::Error> {
    let mut value = parse(text.as_bytes())?;
    spec(&mut value);
    serde_json::from_value(value)
}

#[test]
fn every_name_is_there_once() {
    let mut names: Vec<_> = NAMES.iter().map(|name| name.to_lowercase()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), NAMES.len());
}

#[test]
fn every_member_may_be_null_or_missing() {
    for text in [
        "{}",
        r#"{"ociVersion": null, "process": null, "root": null, "mounts": null, "hooks": null, "linux": null,
            "annotations": null, "hostname": null, "domainname": null}"#,
        r#"{"process": {"user": null, "cwd": null, "args": null, "env": null, "capabilities": null, "rlimits": null,
            "consoleSize": null, "terminal": null, "scheduler": null, "ioPriority": null, "oomScoreAdj": null}}"#,
        r#"{"process": {"user": {"uid": null, "additionalGids": null}, "consoleSize": {},
            "capabilities": {"bounding": null}, "rlimits": [{"type": "RLIMIT_CORE"}], "ioPriority": {}}}"#,
        r#"{"hooks": {"prestart": null, "poststop": [{"path": "/x", "args": null, "env": null, "timeout": null}]}}"#,
        r#"{"mounts": [{"destination": "/x", "type": null, "source": null, "options": null}]}"#,
        r#"{"linux": {"resources": {"devices": null, "memory": null, "cpu": null, "pids": {}, "blockIO": {},
            "hugepageLimits": null, "network": null, "rdma": null, "unified": null}, "namespaces": null,
            "devices": null, "seccomp": null, "sysctl": null, "uidMappings": null, "timeOffsets": null}}"#,
        r#"{"linux": {"resources": {"memory": {"limit": null}, "cpu": {"shares": null, "quota": null},
            "devices": [{}, {"type": "", "access": ""}], "hugepageLimits": [{}], "blockIO": {"weightDevice": [{}]}}}}"#,
        r#"{"linux": {"seccomp": {}, "namespaces": [{"type": "pid", "path": null}], "uidMappings": [{}]}}"#,
        r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "flags": null,
            "syscalls": [{"action": "SCMP_ACT_ERRNO", "args": [{"op": "SCMP_CMP_EQ"}]}]}}}"#,
        r#"{"linux": {"devices": [{"type": "c", "path": "/dev/x"}]}}"#,
        r#"{"vm": {"kernel": {}}, "windows": 7, "solaris": {}, "zos": []}"#,
    ] {
        read(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    }
}

#[test]
fn names_are_the_same_in_any_case_but_for_the_users_own() {
    let text = r#"{"OCIVersion": "1.2.0", "PROCESS": {"Args": ["a"], "CWD": "/", "user": {"UID": 7}},
        "Annotations": {"Path": "x", "none": null}, "linux": {"CgroupsPath": "/c", "Sysctl": {"Kernel.X": "1"},
        "resources": {"Memory": {"Limit": 5}, "Unified": {"CPU": "1"}}}}"#;
    let spec = read(text).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.user().uid(), process.args().as_ref().unwrap()[0].as_str()), (7, "a"));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!((annotations["Path"].as_str(), annotations["none"].as_str()), ("x", ""));
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_ref().unwrap().to_str(), Some("/c"));
    assert!(linux.sysctl().as_ref().unwrap().contains_key("Kernel.X"));
    let resources = linux.resources().as_ref().unwrap();
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(5));
    assert!(resources.unified().as_ref().unwrap().contains_key("CPU"));
}

#[test]
fn unknown_capabilities_are_named_once() {
    let mut process = json!({"capabilities": {"bounding": ["CAP_NEW", "CAP_KILL", "A", 7],
        "effective": ["CAP_NEW"], "permitted": null}});
    assert_eq!(
        take_unknown_capabilities(&mut process).into_iter().collect::<Vec<_>>(),
        ["A", "CAP_NEW"]
    );
    let left = json!({"bounding": ["CAP_KILL", 7], "effective": [], "permitted": null});
    assert_eq!(process["capabilities"], left);
    assert!(take_unknown_capabilities(&mut json!({})).is_empty());
}

#[test]
fn unknown_capabilities_are_left_out() {
    let mut value =
        json!({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_NEXT_YEARS"], "ambient": []}});
    process(&mut value);
    let process: Process = serde_json::from_value(value).unwrap();
    let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
    assert_eq!(bounding.into_iter().collect::<Vec<_>>(), [Capability::Chown]);
}

/// Every policy and flag of the runtime-spec (config.md, "scheduler"), and what `oci-spec` calls two of them.
#[test]
fn scheduling_is_named_as_in_the_specification() {
    let policies = ["OTHER", "FIFO", "RR", "BATCH", "ISO", "IDLE", "DEADLINE"];
    let flags = [
        "RESET_ON_FORK",
        "RECLAIM",
        "DL_OVERRUN",
        "KEEP_POLICY",
        "KEEP_PARAMS",
        "UTIL_CLAMP_MIN",
        "UTIL_CLAMP_MAX",
    ];
    for policy in policies {
        let flags = flags.map(|flag| format!("SCHED_FLAG_{flag}"));
        let said = json!({"scheduler": {"policy": format!("SCHED_{policy}"), "flags": flags}});
        let read = |mut value: Value| -> Process {
            process(&mut value);
            serde_json::from_value(value).unwrap()
        };
        let first = read(said);
        let read_flags = first.scheduler().as_ref().unwrap().flags().clone().unwrap();
        assert_eq!(read_flags.len(), flags.len());
        assert_eq!(read(serde_json::to_value(&first).unwrap()), first, "what was read once");
    }
}

#[test]
fn every_name_of_the_specifications_lists_is_known() {
    let arches = "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 \
        S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB";
    let modes = "DEFAULT BIND INTERLEAVE WEIGHTED_INTERLEAVE PREFERRED PREFERRED_MANY LOCAL";
    for (words, before, pointer) in [
        ("pid network mount ipc uts user cgroup time", "", "/linux/namespaces/0/type"),
        ("LINUX LINUX32", "", "/linux/personality/domain"),
        ("RT BE IDLE", "IOPRIO_CLASS_", "/process/ioPriority/class"),
        (arches, "SCMP_ARCH_", "/linux/seccomp/architectures/0"),
        (
            "LOG SPEC_ALLOW WAIT_KILLABLE_RECV TSYNC",
            "SECCOMP_FILTER_FLAG_",
            "/linux/seccomp/flags/0",
        ),
        (
            "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY",
            "SCMP_ACT_",
            "/linux/seccomp/syscalls/0/action",
        ),
        ("NE LT LE EQ GE GT MASKED_EQ", "SCMP_CMP_", "/linux/seccomp/syscalls/0/args/0/op"),
        (modes, "MPOL_", "/linux/memoryPolicy/mode"),
        ("NUMA_BALANCING RELATIVE_NODES STATIC_NODES", "MPOL_F_", "/linux/memoryPolicy/flags/0"),
    ] {
        for word in words.split_whitespace() {
            let mut value = json!({"process": {"ioPriority": {"class": "", "priority": 0}}, "linux": {
                "namespaces": [{"type": "pid"}], "personality": {"domain": "LINUX"},
                "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                    "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [{"names": ["x"],
                    "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}]}}});
            value["process"]["ioPriority"]["class"] = json!("IOPRIO_CLASS_BE");
            *value.pointer_mut(pointer).unwrap() = json!(format!("{before}{word}"));
            spec(&mut value);
            let read = serde_json::from_value::<Spec>(value);
            read.unwrap_or_else(|error| panic!("{before}{word}: {error}"));
        }
    }
}

#[test]
fn what_is_there_twice_what_follows_and_what_is_no_text_is_no_error() {
    let spec = read(r#"{"hostname": "a", "hostname": "b"} trailing"#).unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("b"));
    assert!(parse(b"{\"hostname\": \"\xff\"}").is_ok());
    assert!(parse(b"").is_err() && parse(b"{").is_err());
}

#[test]
fn half_a_surrogate_pair_stands_for_what_it_is_to_go() {
    for (text, read) in [
        (r"\ud800", "\u{fffd}"),
        (r"a\udc00\n", "a\u{fffd}\n"),
        (r"\uD83D\uDE00", "\u{1f600}"),
        (r"\ud800\ud83d\ude00x", "\u{fffd}\u{1f600}x"),
        (r"\ud800\u0041", "\u{fffd}A"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud800é", "\\\u{fffd}é"),
    ] {
        let value = parse(format!("\"{text}\"").as_bytes());
        assert_eq!(value.unwrap_or_else(|error| panic!("{error}: {text}")), json!(read));
    }
    for wrong in [r#""\ud8"#, r#""\ud80é""#, r#""\"#, r#""\é""#, r#""\u+123""#] {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn null_in_a_list_is_the_empty_value() {
    let text = r#"{"process": {"args": ["a", null], "env": [null], "user": {"additionalGids": [null, 5]},
        "capabilities": {"bounding": [null, "CAP_CHOWN"]}},
        "hooks": {"poststop": [{"path": "/x", "args": [null]}]},
        "mounts": [{"destination": "/x", "options": [null, "ro"]}],
        "linux": {"maskedPaths": [null], "resources": {"devices": [null]}}}"#;
    let spec = read(text).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_deref(), Some(&["a".to_owned(), String::new()][..]));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[0, 5][..]));
    let options = spec.mounts().as_ref().unwrap()[0].options().clone();
    assert_eq!(options.as_deref(), Some(&[String::new(), "ro".to_owned()][..]));
    for wrong in [
        r#"{"mounts": [null]}"#,
        r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW", "args": [null]}]}}}"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_limit_of_huge_pages_may_be_any_that_go_reads() {
    for limit in [u64::MAX, 1 << 63, 5] {
        let mut value = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": limit}]});
        resources(&mut value);
        let resources: LinuxResources = serde_json::from_value(value).unwrap();
        let read = resources.hugepage_limits().as_ref().unwrap()[0].limit();
        assert_eq!(read, i64::try_from(limit).unwrap_or(i64::MAX));
    }
}

#[test]
fn what_is_wrong_to_runc_is_wrong() {
    for text in [
        r#"{"process": []}"#,
        r#"{"process": {"user": {"uid": -1}}}"#,
        r#"{"process": {"args": "sh"}}"#,
        r#"{"process": {"capabilities": {"bounding": [7]}}}"#,
        r#"{"process": {"scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NONE"]}}}"#,
        r#"{"linux": {"namespaces": [{"type": "none"}]}}"#,
        r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NONE"}}}"#,
        r#"{"mounts": [{}]}"#,
    ] {
        assert!(read(text).is_err(), "{text}");
    }
}

#[test]
fn resources_alone_are_read_the_same_way() {
    let mut value = json!({"Memory": {"limit": 5, "swap": null}, "devices": [{"type": ""}]});
    resources(&mut value);
    let resources: LinuxResources = serde_json::from_value(value).unwrap();
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(5));
}
