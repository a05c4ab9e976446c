//! `start`: finds the server of the task's sandbox, or starts one, and tells containerd its address.

use crate::bootstrap::{self, MAX_INPUT, Start};
use crate::flags::Flags;
use crate::{server, socket};
use anyhow::Context;
use sandbox::cgroup::Placement;
use sandbox::pod::{self, Part};
use sandbox::{PodSize, SandboxSpec, bundle, lenient};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `start`.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    protocol::ids::check(&flags.id)?;
    protocol::ids::check(&flags.namespace)?;
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
    }
    let start = Start::read(&input, flags, std::env::var("TTRPC_ADDRESS").ok())?;
    let sandbox = sandbox_of(Path::new("config.json"), &flags.id)?;
    let socket = start.socket_dir.join(socket_name(&flags.address, &flags.namespace, &sandbox.id));
    let address = format!("unix://{}", socket.display());
    let mut server = None;
    if let Some(listener) = socket::listen(&socket)? {
        match spawn_server(flags, &start, &sandbox, &socket, &listener) {
            Ok(waiting) => server = Some(waiting),
            Err(error) => {
                let _ = std::fs::remove_file(&socket);
                return Err(error);
            }
        }
    }
    write_address(&address)?;
    std::io::stdout().write_all(&bootstrap::answer(start.form, &address)?)?;
    std::io::stdout().flush()?;
    // Without this it ends: containerd kills a start whose caller has gone, and never asks for its server.
    server.map_or(Ok(()), |mut server| server.write_all(server::ANSWERED))?;
    Ok(())
}

/// The few things of a spec that are looked at here.
#[derive(Deserialize)]
struct LookedAt {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    linux: Option<Linux>,
}

/// What CRI engines note of a pod in the spec of its pause container, decimal.
const SIZE: [&str; 3] = [
    "io.kubernetes.cri.sandbox-memory",
    "io.kubernetes.cri.sandbox-cpu-quota",
    "io.kubernetes.cri.sandbox-cpu-period",
];

#[derive(Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

/// The sandbox that a task belongs to.
#[derive(Debug, PartialEq, Eq)]
struct Sandbox {
    id: String,
    /// None: the sandbox API will say it.
    spec: Option<SandboxSpec>,
}

/// The sandbox that the task belongs to: of its own id, or of that in an annotation. Without a spec it is no task but a
/// sandbox that is to be made by the sandbox API.
fn sandbox_of(config: &Path, id: &str) -> anyhow::Result<Sandbox> {
    let name = config.display();
    if !config.try_exists().with_context(|| format!("look for {name}"))? {
        return Ok(Sandbox { id: id.into(), spec: None });
    }
    let text = bundle::read_config(config)?;
    // As the server will read it.
    let spec = lenient::parse(&text).and_then(|mut spec| {
        lenient::spec(&mut spec);
        LookedAt::deserialize(spec)
    });
    let spec = spec.with_context(|| format!("parse {name}"))?;
    let annotations = spec.annotations.unwrap_or_default();
    let sandbox = pod::sandbox_id(&annotations).unwrap_or(id);
    protocol::ids::check(sandbox)?;
    let is_pause = Part::of(&annotations) == Part::Pause;
    let number = |name| annotations.get(name).filter(|_| is_pause)?.parse().ok();
    let [memory, cpu_quota, cpu_period] = SIZE.map(|name| number(name).unwrap_or_default());
    let cgroup = spec.linux.and_then(|linux| linux.cgroups_path).filter(|path| !path.is_empty());
    let spec = SandboxSpec {
        hostname: spec.hostname.filter(|name| is_pause && !name.is_empty()),
        cgroup: cgroup.map(|path| Placement::told_by(Path::new(&path))),
        size: PodSize { memory, cpu_quota, cpu_period },
        pod: None,
    };
    Ok(Sandbox { id: sandbox.into(), spec: Some(spec) })
}

/// Of fixed length, since a socket's path may have 107 bytes only.
fn socket_name(address: &str, namespace: &str, sandbox: &str) -> String {
    let digest = Sha256::digest(format!("kata-like/{address}/{namespace}/{sandbox}"));
    digest.iter().fold(String::new(), |mut name, byte| {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// What is given back is to be told [`server::ANSWERED`].
fn spawn_server(
    flags: &Flags,
    start: &Start,
    sandbox: &Sandbox,
    socket: &Path,
    listener: &UnixListener,
) -> anyhow::Result<PipeWriter> {
    let program = std::env::current_exe().context("find this program")?;
    let (answered, answer) = std::io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &flags.namespace, "-id", &sandbox.id, "-address", &flags.address])
        .args(["-ttrpc-address", &start.ttrpc_address, "-socket"])
        .arg(socket)
        .stdin(answered)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if start.debug {
        command.arg("-debug");
    }
    if let Some(config) = &start.config {
        command.arg("-config").arg(config);
    }
    if let Some(spec) = &sandbox.spec {
        command.arg("-sandbox").arg(serde_json::to_string(spec)?);
    }
    command.arg(server::ACTION);
    let fd = listener.as_raw_fd();
    // SAFETY: the closure makes only system calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            sandbox::place(fd, server::LISTENER_FD)
        });
    }
    command.spawn().context("start the server")?;
    Ok(answer)
}

/// Where containerd 1.7 looks for the server after a restart.
fn write_address(address: &str) -> anyhow::Result<()> {
    sandbox::replace(Path::new("address"), address.as_bytes()).context("write the file address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_a_pod_belongs_to_the_pods_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let sandbox = |text: &str| {
            std::fs::write(&config, text).unwrap();
            sandbox_of(&config, "c1").map(|sandbox| sandbox.id)
        };
        assert_eq!(sandbox("{}").unwrap(), "c1");
        assert_eq!(sandbox(r#"{"annotations":null}"#).unwrap(), "c1");
        let pod = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod1"}}"#;
        assert_eq!(sandbox(pod).unwrap(), "pod1");
        assert!(sandbox(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"../x"}}"#).is_err());
        std::fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
        let endless = sandbox_of(&config, "c1").unwrap_err().to_string();
        assert!(endless.contains("longer than"), "{endless}");
        std::fs::remove_file(&config).unwrap();
        assert_eq!(sandbox_of(&config, "s1").unwrap(), Sandbox { id: "s1".into(), spec: None });
        let said = |kind: &str| {
            let text = format!(
                r#"{{"hostname":"web","annotations":{{"io.kubernetes.cri.container-type":"{kind}",
                "io.kubernetes.cri.sandbox-memory":"1024","io.kubernetes.cri.sandbox-cpu-quota":"-1",
                "io.kubernetes.cri.sandbox-cpu-period":"5"}}}}"#
            );
            std::fs::write(&config, text).unwrap();
            sandbox_of(&config, "c1").unwrap().spec.unwrap()
        };
        let size = PodSize { memory: 1024, cpu_quota: 0, cpu_period: 5 };
        let pod = SandboxSpec { hostname: Some("web".into()), size, ..SandboxSpec::default() };
        assert_eq!((said("sandbox"), said("container")), (pod, SandboxSpec::default()));
        let broken = format!("{:#}", sandbox("{").unwrap_err());
        assert!(broken.contains("config.json"), "{broken}");
    }

    #[test]
    fn a_spec_is_read_as_gos_json_is() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let sandbox = |text: &[u8]| {
            std::fs::write(&config, text).unwrap();
            sandbox_of(&config, "c1").unwrap()
        };
        let text =
            br#"{"Annotations":{"a":null,"io.kubernetes.cri.sandbox-id":"pod1"},"hostname":"a",
            "hostname":"b","Linux":{"CgroupsPath":"/c"}} and more"#;
        let cgroup = Some(Placement::Path("/c".into()));
        let spec = Some(SandboxSpec { cgroup, ..SandboxSpec::default() });
        assert_eq!(sandbox(text), Sandbox { id: "pod1".into(), spec });
        assert_eq!(sandbox(b"{\"hostname\":\"\xff\"}").id, "c1");
    }

    #[test]
    fn socket_names_are_short_and_of_one_sandbox() {
        let name = socket_name("/a", "ns", "s");
        assert_eq!(name.len(), 64);
        assert_ne!(name, socket_name("/a", "ns2", "s"));
    }
}
