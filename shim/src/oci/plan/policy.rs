//! What a spec asks of a host's security modules and hardware, which no guest has: refused by name.
//!
//! Engines put a profile of their own on every container where the host has a security module, whether its
//! user asked for one or not. Those are left out (and named in the log): the machine confines more than they do.

use crate::error::{Error, Result};
use oci_spec::runtime::{Linux, Process};

/// AppArmor profiles that containerd, Docker and nerdctl put on every container; and no profile.
const ENGINES_PROFILES: [&str; 4] =
    ["cri-containerd.apparmor.d", "docker-default", "nerdctl-default", "unconfined"];

/// SELinux types that engines put on every container and its files; and the one for no confinement.
const ENGINES_TYPES: [&str; 5] =
    ["container_t", "container_kvm_t", "container_init_t", "container_file_t", "spc_t"];

fn refused(pointer: &str, value: &str) -> Error {
    Error::Unimplemented(format!("config.json: {pointer}: the guest has no {value}"))
}

/// Takes the security modules' labels off a process.
///
/// # Errors
/// [`Error::Unimplemented`] names one that a user has asked for.
pub fn process(process: &mut Process) -> Result<()> {
    let profile = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty());
    if let Some(profile) = profile.filter(|profile| !ENGINES_PROFILES.contains(profile)) {
        return Err(refused("/process/apparmorProfile", &format!("AppArmor profile {profile:?}")));
    }
    label("/process/selinuxLabel", process.selinux_label().as_deref())?;
    process.set_apparmor_profile(None).set_selinux_label(None);
    Ok(())
}

/// Takes the label off a container's files, and sees that nothing is asked that only the host has.
///
/// # Errors
/// [`Error::Unimplemented`] names what.
pub fn linux(linux: &mut Linux) -> Result<()> {
    label("/linux/mountLabel", linux.mount_label().as_deref())?;
    linux.set_mount_label(None);
    if linux.intel_rdt().is_some() {
        return Err(refused("/linux/intelRdt", "cache to allot"));
    }
    Ok(())
}

fn label(pointer: &str, label: Option<&str>) -> Result<()> {
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(()) };
    // user:role:type:level
    let kind = label.split(':').nth(2).unwrap_or_default();
    if ENGINES_TYPES.contains(&kind) {
        return Ok(());
    }
    Err(refused(pointer, &format!("SELinux, so no {label:?}")))
}
