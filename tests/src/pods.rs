//! What containerd's CRI wants for pods: a client, and plugins that give a pod's namespace a network.

use crate::go::Programs;
use anyhow::Result;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the client and the plugins are: where containerd looks for plugins.
pub const BIN_DIR: &str = "/opt/cni/bin";

/// The client of the CRI.
pub const CRICTL: &str = "/opt/cni/bin/crictl";

/// A plugin of nodes, which the newest containerd asks by NRI.
pub const NRI_PLUGIN: Programs = Programs {
    name: "nri-plugin",
    step: ("a plugin of nodes", "half a minute"),
    go_mod: "module lab/nri-plugin\ngo 1.26.6\nrequire github.com/containerd/nri v0.12.3\n",
    build: &["build"],
    packages: &["."],
    flags: "-s -w",
    main: Some(include_str!("../lab/nri-plugin.go")),
};

/// Where it is in a lab whose tests want it.
pub const NRI_PLUGIN_DIR: &str = "/lab/nri-plugin";

const CONFIGURATION: &str = "/etc/cni/net.d/10-lab.conflist";

/// A bridge whose pods reach each other and, by the lab's address, what is outside.
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}]}
"#;

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Writes the configuration of the pods' network.
///
/// # Errors
/// The file system's answer.
pub fn configure_network() -> Result<()> {
    let file = Path::new(CONFIGURATION);
    file.parent().map(std::fs::create_dir_all).transpose()?;
    std::fs::write(file, NETWORK)?;
    // As the plugin would make it with the first pod; but then it was there before.
    let _ = Command::new("ip")
        .args(["link", "add", "cni0", "type", "bridge"])
        .stderr(Stdio::null())
        .status();
    // A pod's are copied from these.
    for (file, text) in [("/etc/hosts", HOSTS), ("/etc/resolv.conf", "nameserver 10.0.2.3\n")] {
        if !Path::new(file).exists() {
            std::fs::write(file, text)?;
        }
    }
    Ok(())
}
