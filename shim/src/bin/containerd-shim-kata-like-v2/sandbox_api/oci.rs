//! The pod in the form of an OCI spec, for those who are told of pods in these terms (NRI's plugins).

use super::config::cgroup;
use protobuf::well_known_types::any::Any;
use protocol::cri::PodSandboxConfig;
use sandbox::{Error, Result, SandboxSpec};
use serde_json::json;

/// As containerd names the type.
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// What is told of sandbox `id`.
///
/// # Errors
/// None that is known: encoding to memory.
pub fn told(spec: &SandboxSpec, config: &PodSandboxConfig, id: &str) -> Result<Any> {
    let linux = config.linux.get_or_default();
    let network = spec.pod.as_ref().and_then(|pod| pod.network.as_ref());
    let resources = linux.resources.get_or_default();
    let told = json!({
        "ociVersion": "1.2.0",
        "hostname": spec.hostname,
        "annotations": config.annotations,
        "linux": {
            "cgroupsPath": cgroup(&linux.cgroup_parent, id).unwrap_or_default(),
            "namespaces": [{"type": "network", "path": network}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}],
            "sysctl": spec.pod.as_ref().map(|pod| &pod.sysctls),
            "resources": {"cpu": {"shares": u64::try_from(resources.cpu_shares).unwrap_or_default()}},
        },
    });
    let value = serde_json::to_vec(&told);
    let value = value.map_err(|e| Error::system("encode the spec")(std::io::Error::other(e)))?;
    Ok(Any { type_url: TYPE.into(), value, ..Any::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::PodSpec;

    #[test]
    fn what_is_told_is_an_oci_spec_with_the_pods_namespaces_and_cgroup() {
        let mut config = PodSandboxConfig::new();
        config.linux.mut_or_insert_default().cgroup_parent = "/pods".into();
        config.annotations.insert("a".into(), "b".into());
        let pod = PodSpec { network: Some("/run/netns/n".into()), ..PodSpec::default() };
        let spec =
            SandboxSpec { hostname: Some("web".into()), pod: Some(pod), ..Default::default() };
        let told = told(&spec, &config, "p").unwrap();
        let told: oci_spec::runtime::Spec = serde_json::from_slice(&told.value).unwrap();
        let linux = told.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_ref().unwrap().to_str(), Some("/pods/p"));
        let network = &linux.namespaces().as_ref().unwrap()[0];
        assert_eq!(network.path().as_ref().unwrap().to_str(), Some("/run/netns/n"));
        assert_eq!(told.annotations().as_ref().unwrap()["a"], "b");
    }
}
