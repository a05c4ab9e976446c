//! `linux.netDevices`: devices of the host's that move into the container's network namespace, whose interfaces are the
//! guest's.

use crate::error::{Error, Result};
use crate::host::network::NetDevice;
use crate::oci::pod::Part;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

/// Most bytes of a name that the kernel takes, `IFNAMSIZ` with its end.
const LONGEST: usize = 15;

/// Takes them out of a spec, in the order of their names.
///
/// # Errors
/// [`Error::InvalidArgument`] for a name that is none, or without a network namespace; [`Error::Unimplemented`] where the
/// network is not the container's to say.
pub(super) fn take(linux: &mut Linux, part: Part) -> Result<Vec<NetDevice>> {
    let devices = linux.net_devices().clone().unwrap_or_default();
    linux.set_net_devices(None);
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let of_network = |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::Network;
    if !linux.namespaces().iter().flatten().any(of_network) {
        return Err(invalid("unable to move network devices without a NET namespace"));
    }
    if part == Part::Member {
        let text = "config.json: /linux/netDevices: a pod's network is that of its first container";
        return Err(Error::Unimplemented(text.into()));
    }
    let mut all = Vec::new();
    for (name, device) in devices {
        let becomes = device.name().clone().filter(|becomes| !becomes.is_empty());
        let becomes = becomes.unwrap_or_else(|| name.clone());
        if let Some(wrong) = [&name, &becomes].into_iter().find(|name| !is_name(name)) {
            return Err(invalid(&format!("invalid network device name {wrong:?}")));
        }
        all.push(NetDevice { name, becomes });
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

fn invalid(what: &str) -> Error {
    Error::InvalidArgument(format!("config.json: /linux/netDevices: {what}"))
}

/// As the kernel has it.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST
        && ![".", ".."].contains(&name)
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn taken(devices: &Value, namespace: &str, part: Part) -> Result<Vec<NetDevice>> {
        let json = json!({"netDevices": devices, "namespaces": [{"type": namespace}]});
        let mut linux: Linux = serde_json::from_value(json).unwrap();
        let taken = take(&mut linux, part)?;
        assert!(linux.net_devices().is_none(), "the guest would look for them");
        Ok(taken)
    }

    #[test]
    fn each_has_the_name_that_it_is_to_have_or_keeps_its_own() {
        let devices = json!({"eth1": {"name": "net0"}, "eth0": {}, "eth2": {"name": ""}});
        let taken = taken(&devices, "network", Part::Alone).unwrap();
        let names: Vec<_> = taken.iter().map(|d| (d.name.as_str(), d.becomes.as_str())).collect();
        assert_eq!(names, [("eth0", "eth0"), ("eth1", "net0"), ("eth2", "eth2")]);
    }

    #[test]
    fn what_can_not_be_is_said() {
        for (devices, namespace, part, words) in [
            (json!({"eth0": {}}), "pid", Part::Alone, "without a NET namespace"),
            (json!({"eth0": {}}), "network", Part::Member, "/linux/netDevices: a pod's"),
            (json!({"a/b": {}}), "network", Part::Alone, "invalid network device name \"a/b\""),
            (json!({"eth0": {"name": "sixteen-letters-"}}), "network", Part::Alone, "sixteen"),
            (json!({"eth0": {"name": ".."}}), "network", Part::Alone, "\"..\""),
            (json!({"": {}}), "network", Part::Alone, "invalid network device name \"\""),
        ] {
            let error = taken(&devices, namespace, part).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(taken(&json!({}), "pid", Part::Alone).unwrap(), []);
    }
}
