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
fn unknown_capabilities_are_left_out() {
    let mut value =
        json!({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_NEXT_YEARS"], "ambient": []}});
    process(&mut value);
    let process: Process = serde_json::from_value(value).unwrap();
    let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
    assert_eq!(bounding.into_iter().collect::<Vec<_>>(), [Capability::Chown]);
}

#[test]
fn what_is_there_twice_what_follows_and_what_is_no_text_is_no_error() {
    let spec = read(r#"{"hostname": "a", "hostname": "b"} trailing"#).unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("b"));
    assert!(parse(b"{\"hostname\": \"\xff\"}").is_ok());
    assert!(parse(b"").is_err() && parse(b"{").is_err());
}

#[test]
fn what_is_wrong_to_runc_is_wrong() {
    for text in [
        r#"{"process": []}"#,
        r#"{"process": {"user": {"uid": -1}}}"#,
        r#"{"process": {"args": "sh"}}"#,
        r#"{"process": {"capabilities": {"bounding": [7]}}}"#,
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
