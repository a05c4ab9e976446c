//! Kernel parameters of what a sandbox's containers share: its network, its IPC and its name, which are the guest's own.

use oci_spec::runtime::LinuxNamespaceType;
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// The namespace that a parameter belongs to, of those that a sandbox's containers may share.
pub fn namespace(name: &str) -> Option<LinuxNamespaceType> {
    let name = name.replace('/', ".");
    match name.strip_prefix("kernel.") {
        _ if name.starts_with("net.") => Some(LinuxNamespaceType::Network),
        _ if name.starts_with("fs.mqueue.") => Some(LinuxNamespaceType::Ipc),
        Some(
            "msgmax" | "msgmnb" | "msgmni" | "sem" | "shmall" | "shmmax" | "shmmni"
            | "shm_rmid_forced",
        ) => Some(LinuxNamespaceType::Ipc),
        Some("domainname") => Some(LinuxNamespaceType::Uts),
        _ => None,
    }
}

/// Sets them, in the order of their names.
///
/// # Errors
/// The first that the kernel refuses.
pub fn set(all: &HashMap<String, String>) -> Result<(), String> {
    for (name, value) in all.iter().collect::<BTreeMap<_, _>>() {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let set = || OpenOptions::new().write(true).open(&path)?.write_all(value.as_bytes());
        set().map_err(|e| format!("linux.sysctl {name}={value}: {e}"))?;
    }
    Ok(())
}

/// Sets a pod's.
///
/// # Errors
/// One is of no namespace; or as [`set`].
pub fn set_of_pod(all: &HashMap<String, String>) -> Result<(), String> {
    match all.keys().find(|name| namespace(name).is_none()) {
        Some(name) => Err(format!("linux.sysctl {name} is not in a namespace of the pod")),
        None => set(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_pods_or_not_there_is_named() {
        let one = |name: &str, value: &str| {
            let refused = set_of_pod(&HashMap::from([(name.into(), value.into())])).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        };
        one("net.ipv4.no_such", "1");
        one("kernel.panic", "1");
        one("/etc/passwd", "1");
        one("net/../kernel/panic", "1");
        one("", "1");
    }
}
