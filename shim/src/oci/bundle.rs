//! A bundle's `config.json` (OCI runtime-spec, config.md), read the same way for both doors.

use crate::error::{Error, Result};
use crate::oci::lenient;
use crate::oci::lost::lost;
use crate::oci::memory_policy;
use oci_spec::runtime::{Capabilities, Mount, Spec};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest `config.json`, bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Reads a `config.json`.
///
/// # Errors
/// It is missing or too long; the text names it.
pub fn read_config(path: &Path) -> Result<Vec<u8>> {
    let wrong = |what: &str| Error::InvalidArgument(format!("{}: {what}", path.display()));
    let mut text = Vec::new();
    // What is read counts: a device or a file that grows tells no length.
    let read = File::open(path).and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut text));
    match read.map_err(|e| wrong(&e.to_string()))? as u64 {
        ..=MAX_CONFIG => Ok(text),
        _ => Err(wrong(&format!("it is longer than {MAX_CONFIG} bytes"))),
    }
}

/// Reads the spec of a bundle; its root and the sources of its bind mounts become absolute.
///
/// A property that the specification doesn't know is no error ("Extensibility"), but is named in a warning.
///
/// # Errors
/// It is missing, too long or not a spec; the text says where.
pub fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let wrong = |what: &str| Error::InvalidArgument(format!("{}: {what}", path.display()));
    let text = read_config(&path)?;
    let not_a_spec = |e: serde_json::Error| wrong(&format!("it is not an OCI spec: {e}"));
    let mut said = lenient::parse(&text).map_err(not_a_spec)?;
    lenient::spec(&mut said);
    memory_policy::check(&said).map_err(|e| wrong(&e))?;
    let mut spec = Spec::deserialize(&said).map_err(not_a_spec)?;
    let unknown = lost(&said, &serde_json::to_value(&spec).map_err(not_a_spec)?);
    if !unknown.is_empty() {
        tracing::warn!("{}: unknown and ignored: {}", path.display(), unknown.join(", "));
    }
    let lost = unraisable(&spec);
    if !lost.is_empty() {
        let (path, lost) = (path.display(), lost.join(", "));
        tracing::warn!(
            "{path}: can't raise ambient capability {lost}: not permitted and inheritable"
        );
    }
    if let Some(root) = spec.root_mut() {
        let absolute = bundle.join(root.path());
        root.set_path(absolute);
    }
    for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| is_bind(mount)) {
        let absolute = mount.source().as_ref().map(|source| bundle.join(source));
        mount.set_source(absolute);
    }
    Ok(spec)
}

/// Ambient capabilities that no process can have, sorted: the guest leaves them out, as runc does.
fn unraisable(spec: &Spec) -> Vec<String> {
    let sets = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let Some(sets) = sets else { return Vec::new() };
    let has = |set: &Option<Capabilities>, capability| {
        set.as_ref().is_some_and(|set: &Capabilities| set.contains(capability))
    };
    let ambient = sets.ambient().iter().flatten();
    let lost = ambient.filter(|one| !(has(sets.permitted(), one) && has(sets.inheritable(), one)));
    let mut lost: Vec<String> = lost.map(|one| format!("CAP_{one}")).collect();
    lost.sort();
    lost
}

/// Whether it shows a file or directory of the host.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_with_a_bundle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = || read_spec(dir.path()).unwrap_err().to_string();
        assert!(error().contains("No such file"), "{}", error());
        std::fs::write(dir.path().join("config.json"), "{\"root\": ").unwrap();
        assert!(error().contains("config.json") && error().contains("line 1"), "{}", error());
    }

    #[test]
    fn a_config_without_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
        let refused = read_spec(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("config.json: it is longer than 16777216 bytes"), "{refused}");
        std::fs::remove_file(&config).unwrap();
        std::fs::write(&config, vec![b' '; MAX_CONFIG as usize]).unwrap();
        assert_eq!(read_config(&config).unwrap().len() as u64, MAX_CONFIG);
    }

    #[test]
    fn a_memory_policy_that_is_none_is_refused_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion":"1.2.0","linux":{"memoryPolicy":{"Mode":"BIND"}}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let refused = read_spec(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("config.json: invalid memory policy mode \"BIND\""), "{refused}");
    }

    #[test]
    fn an_unknown_field_is_ignored_as_the_oci_spec_demands_and_the_root_is_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion":"1.2.0","new":1,"root":{"path":"rootfs"}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let spec = read_spec(dir.path()).unwrap();
        assert_eq!(spec.root().as_ref().unwrap().path(), &dir.path().join("rootfs"));
    }

    #[test]
    fn ambient_capabilities_that_cannot_be_raised_are_named() {
        let spec = |ambient: &[&str]| -> Spec {
            let sets = json!({"permitted": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_KILL"],
                "ambient": ambient});
            let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "capabilities": sets});
            serde_json::from_value(json!({"ociVersion": "1.2.0", "process": process})).unwrap()
        };
        assert_eq!(unraisable(&spec(&["CAP_KILL"])), Vec::<String>::new());
        let lost = unraisable(&spec(&["CAP_SYSLOG", "CAP_KILL", "CAP_CHOWN"]));
        assert_eq!(lost, ["CAP_CHOWN", "CAP_SYSLOG"]);
    }

    #[test]
    fn nothing_of_a_usual_spec_is_unknown() {
        let said = json!({
            "ociVersion": "1.2.0",
            "process": {"terminal": false, "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
                "args": ["sh"], "env": ["A=b"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                    "permitted": ["CAP_CHOWN"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
                "oomScoreAdj": 100, "apparmorProfile": "cri-containerd.apparmor.d"},
            "root": {"path": "rootfs"},
            "hostname": "h",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid"], "uidMappings": [], "gidMappings": []}],
            "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rwm"}],
                    "memory": {"limit": 1, "swap": 1}, "pids": {"limit": 1},
                    "cpu": {"shares": 2, "period": 100_000, "quota": 100_000},
                    "unified": {"memory.oom.group": "1"}},
                "cgroupsPath": "/default/c", "namespaces": [{"type": "pid"}, {"type": "cgroup"}],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                    "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]},
                "maskedPaths": ["/proc/acpi"], "readonlyPaths": ["/proc/bus"],
                "sysctl": {"net.ipv4.ping_group_range": "0 0"}}});
        let spec: Spec = serde_json::from_value(said.clone()).unwrap();
        assert_eq!(lost(&said, &serde_json::to_value(spec).unwrap()), Vec::<String>::new());
    }
}
