//! Pure: from a spec and the settings to what the VMM, the host's mounts and the guest get.
//!
//! The rules by which the OCI spec changes on its way into the guest, each tested below:
//!
//! 1. `root.path` becomes the container's place in the shared directory.
//! 2. The source of a bind mount becomes its place in the shared directory; the host binds it there.
//! 3. Namespaces that a host path names can't be joined from the guest. Network, IPC, UTS and time
//!    belong to the sandbox, so the container shares the guest's own; any other is refused.
//!    A new network namespace is dropped too: the guest's only network is the sandbox's.
//! 4. `cgroupsPath` becomes `/kata-like/<id>`: the guest has no slices of the host's.
//! 5. What names host hardware or host policy is removed: hooks, AppArmor and SELinux labels, RDT, NUMA
//!    policy, CPU sets, block and network device limits, RDMA, and device nodes other than FUSE and TUN.

use crate::bundle;
use crate::error::{Error, Result};
use crate::paths;
use crate::settings::Settings;
use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Mount, Spec};
use protocol::machine::{FsConfig, JailConfig, MachineConfig, Size, VsockConfig};
use protocol::ports;
use std::path::{Path, PathBuf};

/// The context id of every guest: vsock is private to one VMM, so they can all have the same.
const GUEST_CID: u32 = 3;

/// Character devices (major, minor) that every Linux has under the same number: `/dev/fuse`, `/dev/net/tun`.
const PORTABLE_DEVICES: [(i64, i64); 2] = [(10, 229), (10, 200)];

/// What one container needs on the host and in the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The spec for the guest.
    pub spec: Spec,
    /// What of the spec has no meaning in the guest and was left out, as JSON pointers.
    pub left_out: Vec<String>,
    /// Host files and directories to show in the container's part of the shared directory, by index.
    pub binds: Vec<Bind>,
}

/// A host file or directory that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// Enforced on the host's mount, so that the guest can't write whatever it does.
    pub read_only: bool,
    /// With the mounts below it.
    pub recursive: bool,
}

/// The machine of a sandbox. Its one vhost-user socket is descriptor 0 of the boot message.
pub fn machine(settings: &Settings, console_log: PathBuf) -> MachineConfig {
    MachineConfig {
        vcpus: settings.vcpus,
        memory_mib: settings.memory_mib,
        max: Size {
            vcpus: settings.max_vcpus,
            added_mib: settings.max_memory_mib.saturating_sub(settings.memory_mib),
        },
        kernel: settings.kernel.clone(),
        initrd: Some(settings.image.clone()),
        cmdline: settings.kernel_params.clone(),
        console_log: Some(console_log),
        disks: Vec::new(),
        vsock: Some(VsockConfig { guest_cid: GUEST_CID, host_ports: vec![ports::LOG] }),
        shared_dirs: vec![FsConfig { tag: ports::SHARED_TAG.into(), socket_fd: 0 }],
        jail: JailConfig { uid: settings.uid, gid: settings.gid, namespaces: true },
    }
}

/// Plans container `id`.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what the spec lacks or asks that can't be had.
pub fn container(id: &str, mut spec: Spec) -> Result<Plan> {
    let invalid = |what: &str| Error::InvalidArgument(format!("config.json: {what}"));
    let value = |spec: &Spec| serde_json::to_value(spec).map_err(|e| invalid(&e.to_string()));
    let asked = value(&spec)?;
    let process = spec.process_mut().as_mut().ok_or_else(|| invalid("no process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("process.args is empty"));
    }
    process.set_apparmor_profile(None).set_selinux_label(None);
    let root = spec.root_mut().as_mut().ok_or_else(|| invalid("no root"))?;
    root.set_path(paths::guest_rootfs(id));
    spec.set_hooks(None);
    if let Some(linux) = spec.linux_mut() {
        plan_linux(id, linux)?;
    }
    let binds = plan_mounts(id, spec.mounts_mut().get_or_insert_default())?;
    let left_out = bundle::lost(&asked, &value(&spec)?);
    Ok(Plan { spec, left_out, binds })
}

fn plan_linux(id: &str, linux: &mut Linux) -> Result<()> {
    linux
        .set_cgroups_path(Some(Path::new("/kata-like").join(id)))
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None)
        .set_net_devices(None);
    if let Some(devices) = linux.devices_mut() {
        devices.retain(|d| {
            matches!(d.typ(), LinuxDeviceType::C | LinuxDeviceType::U)
                && PORTABLE_DEVICES.contains(&(d.major(), d.minor()))
        });
    }
    if let Some(resources) = linux.resources_mut() {
        plan_resources(resources);
    }
    plan_namespaces(linux)
}

fn plan_resources(resources: &mut LinuxResources) {
    resources.set_block_io(None).set_network(None).set_rdma(None).set_hugepage_limits(None);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
}

/// The limits of `linux.resources` that are the guest's, to be set on a container that exists.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is no such object, or for limits that only the host could set.
pub fn update(resources_json: &[u8]) -> Result<Vec<u8>> {
    let invalid = |what: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("update: linux.resources: {what}"))
    };
    let mut resources: LinuxResources =
        serde_json::from_slice(resources_json).map_err(|e| invalid(&e))?;
    // Who may use which device is decided once.
    resources.set_devices(None);
    let value = |r: &LinuxResources| serde_json::to_value(r).map_err(|e| invalid(&e));
    let asked = value(&resources)?;
    plan_resources(&mut resources);
    let left_out = bundle::lost(&asked, &value(&resources)?);
    if !left_out.is_empty() {
        return Err(invalid(&format!("the guest can't be given {}", left_out.join(", "))));
    }
    serde_json::to_vec(&resources).map_err(|e| invalid(&e))
}

fn plan_namespaces(linux: &mut Linux) -> Result<()> {
    let Some(namespaces) = linux.namespaces_mut() else { return Ok(()) };
    for namespace in namespaces.iter() {
        use LinuxNamespaceType::{Ipc, Network, Time, Uts};
        if let Some(path) = namespace.path()
            && !matches!(namespace.typ(), Network | Ipc | Uts | Time)
        {
            return Err(Error::InvalidArgument(format!(
                "config.json: the guest can't join the host's {} namespace {}",
                namespace.typ(),
                path.display()
            )));
        }
    }
    namespaces.retain(|n| n.path().is_none() && n.typ() != LinuxNamespaceType::Network);
    Ok(())
}

fn plan_mounts(id: &str, mounts: &mut [Mount]) -> Result<Vec<Bind>> {
    let mut binds = Vec::new();
    for mount in mounts.iter_mut().filter(|m| is_bind(m)) {
        let source = mount.source().clone().ok_or_else(|| {
            let to = mount.destination().display();
            Error::InvalidArgument(format!("config.json: the bind mount on {to} has no source"))
        })?;
        let has = |option: &str| mount.options().iter().flatten().any(|o| o == option);
        binds.push(Bind { source, read_only: has("ro"), recursive: has("rbind") });
        mount.set_source(Some(paths::guest_bind(id, binds.len() - 1)));
    }
    Ok(binds)
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
}

#[cfg(test)]
mod tests;
