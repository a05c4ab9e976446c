//! The lab on the host's own kernel, where its KVM runs guests: no emulation between the tests and the hardware.

use crate::root::Root;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const INIT: &str = include_str!("../lab/host-init");

/// On what the lab stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// QEMU's software emulation.
    Emulated,
    /// The host's kernel and KVM.
    Host,
}

impl Ground {
    /// What `$KATA_LIKE_GROUND` says (`emulated` or `host`); else the host, when the VMM's own tiny guest
    /// runs there. `vmm` is the VMM's program; without one it is not known, and so emulated.
    ///
    /// # Errors
    /// When the variable says something else.
    pub fn choose(vmm: &Path) -> Result<Self> {
        let wish = std::env::var("KATA_LIKE_GROUND").unwrap_or_default();
        Self::decide(&wish, || probe(vmm))
    }

    fn decide(wish: &str, runs_guests: impl FnOnce() -> bool) -> Result<Self> {
        match wish {
            "host" => Ok(Self::Host),
            "emulated" => Ok(Self::Emulated),
            "" => Ok(if runs_guests() { Self::Host } else { Self::Emulated }),
            other => bail!("KATA_LIKE_GROUND is {other:?}: use host or emulated"),
        }
    }
}

/// Whether the VMM's probe, a guest of a few instructions, ran: its answer then has no error.
fn probe(vmm: &Path) -> bool {
    let Ok(output) = Command::new(vmm).arg("--probe").stdin(Stdio::null()).output() else {
        return false;
    };
    let answer = serde_json::from_slice::<serde_json::Value>(&output.stdout);
    answer.is_ok_and(|answer| answer.get("max_vcpus").is_some())
}

/// The agent's socket in a lab's folder.
pub fn agent_socket(run: &Path) -> PathBuf {
    run.join("agent")
}

/// Starts the lab in namespaces of its own; it ends with the process whose id is in `run/pid`.
///
/// # Errors
/// When a file can't be made or the process not started.
pub fn spawn(root: &Root, run: &Path, agent: &Path) -> Result<()> {
    std::fs::create_dir_all(run)?;
    // Who may reach the agent's socket may do anything on this host.
    std::fs::set_permissions(run, PermissionsExt::from_mode(0o700))?;
    std::fs::copy(agent, run.join("lab-agent")).with_context(|| agent.display().to_string())?;
    let said = File::create(run.join("console"))?;
    let child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private"])
        .args(["sh", "-c", INIT, "host-init"])
        .arg(root.dir.join("root"))
        .arg(run)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .process_group(0)
        .spawn()
        .context("unshare is missing: install util-linux")?;
    std::fs::write(run.join("pid"), child.id().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ground_is_the_probes_unless_someone_wishes_otherwise() {
        assert_eq!(Ground::decide("", || true).unwrap(), Ground::Host);
        assert_eq!(Ground::decide("", || false).unwrap(), Ground::Emulated);
        assert_eq!(Ground::decide("emulated", || true).unwrap(), Ground::Emulated);
        assert_eq!(Ground::decide("host", || false).unwrap(), Ground::Host);
        Ground::decide("hots", || false).unwrap_err();
    }

    #[test]
    fn only_an_answer_without_error_is_a_yes() {
        let dir = std::env::temp_dir().join(format!("lab-probe-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let vmm = dir.join("vmm");
        let answers =
            [(r#"{"max_vcpus":8}"#, true), (r#"{"error":"x","remedy":"y"}"#, false), ("", false)];
        for (answer, fit) in answers {
            std::fs::write(&vmm, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
            std::fs::set_permissions(&vmm, PermissionsExt::from_mode(0o755)).unwrap();
            assert_eq!(probe(&vmm), fit, "{answer}");
        }
        assert!(!probe(&dir.join("none")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
