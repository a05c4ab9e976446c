//! Pure: from a spec and the settings to what the VMM, the host's mounts and the guest get.
//!
//! The rules by which the OCI spec changes on its way into the guest, each tested below:
//!
//! 1. `root.path` becomes the container's place in the shared directory.
//!    Block devices and disk images become disks of the machine, and are mounted in the guest ([`disks`]).
//! 2. The source of a bind mount becomes its place in the shared directory; the host binds it there, and maps
//!    its owners where the spec says so ([`binds`]), and notes accesses as it says ([`access_times`]).
//! 3. Namespaces that a host path names can't be joined from the guest. Network, IPC, UTS and time
//!    belong to the sandbox, so the container shares the guest's own. A user namespace with mappings beside its
//!    path, as CRI engines write them, becomes one of the same mappings. Any other is refused.
//!    A new network namespace is dropped too: the guest's only network is the sandbox's. On the host that of the process
//!    which stands for the sandbox is the new one: some engines fill it later. The interfaces of it, or of one that a
//!    path names are given to the guest. Network devices of the host's move there first ([`net_devices`]).
//! 4. What names host policy or host hardware is refused or left out ([`policy`]). Left out are also limits
//!    by numbers of the host's (CPU sets, weights of disks, rates of those that are none of the container's), which the
//!    sandbox's cgroup has ([`is_hosts_limit`]), those of network devices, RDMA, and nodes of devices that not every
//!    Linux has.
//! 5. Hooks run on the host, by this library, but for `startContainer`, which is the guest's.

mod access_times;
mod binds;
pub mod disks;
pub mod host;
mod layers;
mod net_devices;
mod policy;
pub mod shared;

use crate::error::{Error, Result};
use crate::guest::paths as guest_paths;
use crate::host::network::NetDevice;
use crate::host::number_list::NumberList;
use crate::oci::lenient;
use crate::oci::lost::lost;
use crate::oci::pod::Part;
use crate::settings::Settings;
pub use access_times::AccessTimes;
use binds::Binds;
pub use binds::{Bind, Follows, Owners, SharedBind, Timed};
use disks::{Disks, Writes};
use host::{Host, Numbers};
use oci_spec::runtime::{
    Hooks, HooksBuilder, Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSchedulerPolicy, LinuxThrottleDevice, Process, Spec,
};
use protocol::machine::{FsConfig, JailConfig, MachineConfig, Size, VsockConfig};
use protocol::ports;
use serde::Deserialize;
use serde_json::Value;
use shared::{SubPath, Surroundings, Volume};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// The context id of every guest: vsock is private to one VMM, so they can all have the same.
const GUEST_CID: u32 = 3;

/// Most bytes of JSON in one call to the guest: ttrpc's messages hold 4 MiB, with some room for the rest of the call.
const MAX_FOR_GUEST: usize = (4 << 20) - (64 << 10);

/// Character devices (major, minor) that every Linux has under the same number: `/dev/fuse`, `/dev/net/tun`,
/// null, zero, full, random, urandom, kmsg (of the guest's kernel), tty, console and ptmx.
const PORTABLE_DEVICES: [(i64, i64); 11] =
    [(10, 229), (10, 200), (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (1, 11), (5, 0), (5, 1), (5, 2)];

/// What one container needs on the host and in the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The spec for the guest.
    pub spec: Spec,
    /// The same, to be sent.
    pub spec_json: Vec<u8>,
    /// What the host's hooks are told of it.
    pub annotations: HashMap<String, String>,
    /// What of the spec has no meaning in the guest and was left out, as JSON pointers.
    pub left_out: Vec<String>,
    /// Its `linux.resources`, whole.
    pub resources: Value,
    /// What is to be mounted on the host for its root file system; empty when that is on a disk.
    pub rootfs: Vec<RootfsMount>,
    /// Its disks.
    pub disks: Disks,
    /// Host files and directories to show in the container's part of the shared directory, by index.
    pub binds: Vec<Bind>,
    /// The same, for all of its sandbox's containers that ask for it.
    pub shared_binds: Vec<SharedBind>,
    /// The host's network namespace whose interfaces the guest is to have.
    pub network: Option<PathBuf>,
    /// Network devices of the host's that are to move into that namespace before.
    pub net_devices: Vec<NetDevice>,
    /// Kernel parameters of the pod whose pause container it is: the guest's.
    pub sysctls: BTreeMap<String, String>,
    /// The guest's memory that it shares with its pod.
    pub volumes: Vec<Volume>,
    /// Parts of it that it mounts.
    pub sub_paths: Vec<SubPath>,
    /// Of its binds those that the guest mounts for it.
    pub timed: Vec<Timed>,
    /// What it is to its sandbox.
    pub part: Part,
    /// The host's process whose PID namespace it is to have; whether that stands for one of the sandbox's is not known.
    pub joins_pids: Option<u32>,
    /// What is to be run on the host at the turns of the container's life.
    pub hooks: Hooks,
}

/// One mount as a snapshotter describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type, or `bind`.
    pub fstype: String,
    /// What `mount(2)` takes.
    pub source: String,
    /// Below the root file system; empty for the root itself.
    pub target: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

/// The machine of a sandbox, whose VMM is to be this user. Its vhost-user sockets are descriptors 0 and 1 of the boot message.
pub fn machine(settings: &Settings, uid: u32, console_log: PathBuf) -> MachineConfig {
    MachineConfig {
        vcpus: settings.vcpus,
        memory_mib: settings.memory_mib,
        max: Size {
            vcpus: settings.max_vcpus,
            added_mib: settings.max_memory_mib.saturating_sub(settings.memory_mib),
        },
        nested: settings.nested,
        kernel: settings.kernel.clone(),
        initrd: Some(settings.image.clone()),
        cmdline: settings.kernel_params.clone(),
        console_log: Some(console_log),
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            host_ports: vec![ports::LOG, ports::RESOLVER],
        }),
        shared_dirs: [ports::SHARED_TAG, ports::LAYERS_TAG]
            .into_iter()
            .enumerate()
            .map(|(socket_fd, tag)| FsConfig { tag: tag.into(), socket_fd })
            .collect(),
        slots: settings.max_disks,
        jail: JailConfig {
            uid,
            gid: uid,
            namespaces: true,
            core_scheduling: settings.core_scheduling,
        },
    }
}

/// Plans container `id`, whose root file system is what these mounts give; process `pid` of the host stands for its sandbox.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what the spec lacks or asks that can't be had, [`Error::Unimplemented`] what
/// no container can have.
pub fn container(
    id: &str,
    mut spec: Spec,
    mut rootfs: Vec<RootfsMount>,
    writes: Writes,
    pid: u32,
    host: &dyn Host,
) -> Result<Plan> {
    let invalid = |what: &str| Error::InvalidArgument(format!("config.json: {what}"));
    let value = |spec: &Spec| serde_json::to_value(spec).map_err(|e| invalid(&e.to_string()));
    let asked = value(&spec)?;
    let part = spec.annotations().as_ref().map(Part::of).unwrap_or_default();
    let process = spec.process_mut().as_mut().ok_or_else(|| invalid("no process"))?;
    check_process(process, "config.json")?;
    policy::process(process)?;
    check_deadlines(&spec, host)?;
    let with_host = binds::are_with_host(&spec);
    let root = spec.root_mut().as_mut().ok_or_else(|| invalid("no root"))?;
    let mut disks = Disks::default();
    let read_only = root.readonly().unwrap_or_default();
    let layered = disks.take_layers(id, &mut rootfs, (writes, part), read_only, host)?;
    let on_disk = layered
        .or_else(|| disks.take_root(id, &mut rootfs, host))
        .or_else(|| disks.cover_root(id, &mut rootfs, (writes, part), read_only));
    let in_guest = on_disk.unwrap_or_else(|| guest_paths::rootfs(id));
    let mut binds = Binds::new(id, [root.path(), &in_guest], part, with_host);
    root.set_path(in_guest);
    if part != Part::Alone {
        // The guest has been told the pod's.
        spec.set_hostname(None).set_domainname(None);
    }
    // For guests that a runtime makes of such a section alone.
    spec.set_vm(None);
    let mapped = binds::user_namespace(&spec);
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if !disks.take_mount(id, mount, host)? {
            binds.take(mount, mapped.as_ref(), host)?;
        }
    }
    let linux = spec.linux_mut().as_mut().ok_or_else(no_mount_namespace)?;
    disks.take_devices(linux, host);
    let of_network = |n: &&LinuxNamespace| n.typ() == LinuxNamespaceType::Network;
    let network = linux.namespaces().iter().flatten().find(of_network);
    let network = network.filter(|n| !shared::is_of(n, pid));
    let network = network.and_then(|n| n.path().clone().or_else(|| shared::network_of(pid)));
    let net_devices = net_devices::take(linux, part)?;
    let joins_pids = plan_linux(linux, &disks, Surroundings { part, pid })?;
    let mut sysctls = BTreeMap::new();
    if part == Part::Pause {
        sysctls.extend(linux.sysctl().clone().unwrap_or_default());
        linux.set_sysctl(None);
    }
    let hooks = plan_hooks(&mut spec, rootfs.is_empty())?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    if hooks.start_container().as_ref().is_none_or(Vec::is_empty) {
        // Nobody else in the guest asks for them, and there may be a lot.
        spec.set_annotations(None);
    }
    let planned = value(&spec)?;
    let spec_json = serde_json::to_vec(&planned).map_err(|e| invalid(&e.to_string()))?;
    check_length(&spec_json, "config.json")?;
    let mut left_out = lost(&asked, &planned);
    // These are seen to on the host.
    left_out.retain(|at| {
        !["/hooks", "/mounts", "/annotations", "/hostname", "/linux/sysctl", "/linux/netDevices"]
            .iter()
            .any(|on_host| at.starts_with(on_host))
    });
    let Binds { all: binds, shared: shared_binds, volumes, sub_paths, timed, .. } = binds;
    let resources = asked.pointer("/linux/resources").cloned().unwrap_or_default();
    Ok(Plan {
        spec,
        spec_json,
        annotations,
        left_out,
        resources,
        rootfs,
        disks,
        binds,
        shared_binds,
        network,
        net_devices,
        sysctls,
        volumes,
        sub_paths,
        timed,
        part,
        joins_pids,
        hooks,
    })
}

/// Checks one more process of a container: an OCI `process` object, and what of it is for the guest.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is no such object, [`Error::Unimplemented`] as for a container's.
pub fn exec(process_json: &[u8]) -> Result<Vec<u8>> {
    let invalid = |e: serde_json::Error| Error::InvalidArgument(format!("process: {e}"));
    let mut process = lenient::parse(process_json).map_err(invalid)?;
    lenient::process(&mut process);
    let mut process = Process::deserialize(process).map_err(invalid)?;
    check_process(&process, "process")?;
    policy::process(&mut process)?;
    let json = serde_json::to_vec(&process).map_err(invalid)?;
    check_length(&json, "process")?;
    Ok(json)
}

/// As runc.
fn check_process(process: &Process, of: &str) -> Result<()> {
    let invalid = |what: &str| Err(Error::InvalidArgument(format!("{of}: {what}")));
    if process.cwd().as_os_str().is_empty() {
        return invalid("Cwd property must not be empty");
    }
    if !process.cwd().is_absolute() {
        return invalid("Cwd must be an absolute path");
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return invalid("process.args is empty: args must not be empty");
    }
    Ok(())
}

/// The kernel gives no deadlines to a process that may not run on all processors: as with runc, although CPU sets are
/// left out of what the guest gets.
fn check_deadlines(spec: &Spec, host: &dyn Host) -> Result<()> {
    let scheduler = spec.process().as_ref().and_then(|process| process.scheduler().as_ref());
    if scheduler.is_none_or(|s| *s.policy() != LinuxSchedulerPolicy::SchedDeadline) {
        return Ok(());
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let Some(cpus) = cpu.and_then(|cpu| cpu.cpus().as_deref()).filter(|cpus| !cpus.is_empty())
    else {
        return Ok(());
    };
    if NumberList::parse(cpus).is_ok_and(|cpus| cpus.has_all(&host.processors())) {
        return Ok(());
    }
    let text = "config.json: process scheduler can't be used together with AllowedCPUs";
    Err(Error::InvalidArgument(text.into()))
}

/// A message to the guest's agent has a longest length.
fn check_length(json: &[u8], of: &str) -> Result<()> {
    if json.len() <= MAX_FOR_GUEST {
        return Ok(());
    }
    let (is, length) = (json.len(), MAX_FOR_GUEST);
    let text = format!("{of}: {is} bytes of it are for the guest, which takes {length} at most");
    Err(Error::InvalidArgument(text))
}

/// Takes the host's hooks out of a spec.
///
/// # Errors
/// `createContainer`, where the root file system is one `on_disk`, which only the guest's kernel reads: they begin in it.
fn plan_hooks(spec: &mut Spec, on_disk: bool) -> Result<Hooks> {
    let hooks = spec.hooks().clone().unwrap_or_default();
    if on_disk && hooks.create_container().as_ref().is_some_and(|hooks| !hooks.is_empty()) {
        let text = "config.json: /hooks/createContainer: a root file system on a disk of the guest's can't be \
                    where a program of the host begins";
        return Err(Error::Unimplemented(text.into()));
    }
    let of_guest = hooks.start_container().clone().filter(|hooks| !hooks.is_empty());
    let of_guest = of_guest.map(|hooks| HooksBuilder::default().start_container(hooks).build());
    let of_guest = of_guest.transpose();
    spec.set_hooks(of_guest.map_err(|e| Error::InvalidArgument(format!("config.json: {e}")))?);
    Ok(hooks)
}

fn is_portable(device: &LinuxDevice) -> bool {
    match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => {
            PORTABLE_DEVICES.contains(&(device.major(), device.minor()))
        }
        LinuxDeviceType::P => true,
        _ => false,
    }
}

fn plan_linux(linux: &mut Linux, disks: &Disks, around: Surroundings) -> Result<Option<u32>> {
    policy::linux(linux)?;
    if let Some(devices) = linux.devices_mut() {
        devices.retain(|device| is_portable(device) || disks.has_device(device));
    }
    check_sysctls(linux)?;
    if let Some(resources) = linux.resources_mut() {
        disks.retain_limits(resources);
        plan_resources(resources);
    }
    plan_namespaces(linux, around)
}

fn plan_resources(resources: &mut LinuxResources) {
    resources.set_network(None).set_rdma(None);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
    if let Some(files) = resources.unified_mut() {
        files.retain(|file, _| !HOSTS_FILES.contains(&&**file));
    }
}

/// Files of a cgroup that name processors, nodes of memory or disks by the host's numbers.
const HOSTS_FILES: [&str; 4] = ["cpuset.cpus", "cpuset.mems", "io.max", "io.bfq.weight"];

/// Whether a pointer within `linux.resources` names a limit that holds for the sandbox's cgroup on the host, where there is
/// one, whatever the guest is told of it.
pub fn is_hosts_limit(at: &str) -> bool {
    let hosts_file = at.strip_prefix("/unified/").is_some_and(|file| HOSTS_FILES.contains(&file));
    hosts_file
        || ["/cpu/cpus", "/cpu/mems", "/blockIO/weightDevice"].contains(&at)
        || at.starts_with("/blockIO/throttle")
}

/// Limits that a running container is to have.
#[derive(Debug)]
pub struct Update {
    /// All that are named.
    pub asked: LinuxResources,
    /// Those that are the guest's.
    pub for_guest: LinuxResources,
}

/// What a container was created with, and where it is.
#[derive(Debug, Clone, Default)]
pub struct Created {
    /// What it is to its sandbox.
    pub part: Part,
    /// Its `linux.resources`, whole.
    pub resources: Value,
    /// The numbers of its disks on the host.
    pub disks: Vec<Numbers>,
    /// Whether its sandbox has a cgroup on the host.
    pub has_cgroup: bool,
}

/// The limits of `linux.resources`, to be set on a container that was created with others. What was left out then may be
/// named again as it was: engines send all that they know.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is no such object, or for limits that nobody could set.
pub fn update(resources_json: &[u8], created: &Created) -> Result<Update> {
    let invalid = |what: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("update: linux.resources: {what}"))
    };
    let mut resources = lenient::parse(resources_json).map_err(|e| invalid(&e))?;
    lenient::resources(&mut resources);
    let mut resources = LinuxResources::deserialize(resources).map_err(|e| invalid(&e))?;
    // Who may use which device is decided once.
    resources.set_devices(None);
    let value = |r: &LinuxResources| serde_json::to_value(r).map_err(|e| invalid(&e));
    let asked = resources.clone();
    // Those of other disks are refused by the agent, unless they are the host's to see to.
    let of_disk = |limit: &LinuxThrottleDevice| {
        !created.has_cgroup || disks::limited(limit).is_some_and(|n| created.disks.contains(&n))
    };
    let keep = |list: Vec<_>| list.into_iter().filter(of_disk).collect();
    resources.set_block_io(resources.block_io().as_ref().map(|all| disks::block_io(all, &keep)));
    plan_resources(&mut resources);
    let named = value(&asked)?;
    let mut left_out = lost(&named, &value(&resources)?);
    left_out.retain(|at| named.pointer(at) != created.resources.pointer(at));
    left_out.retain(|at| !(created.has_cgroup && is_hosts_limit(at)));
    if !left_out.is_empty() {
        return Err(invalid(&format!("the guest can't be given {}", left_out.join(", "))));
    }
    Ok(Update { asked, for_guest: resources })
}

/// Sysctls of a namespace that the container shares with the host: as runc, no. The guest can't tell any more,
/// since namespaces of the sandbox are dropped.
fn check_sysctls(linux: &Linux) -> Result<()> {
    let has = |kind| linux.namespaces().iter().flatten().any(|n| n.typ() == kind);
    let (network, ipc) = (has(LinuxNamespaceType::Network), has(LinuxNamespaceType::Ipc));
    for name in linux.sysctl().iter().flat_map(|all| all.keys()) {
        let dotted = name.replace('/', ".");
        let shared = (dotted.starts_with("net.") && !network)
            || (!ipc
                && ["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."]
                    .iter()
                    .any(|prefix| dotted.starts_with(prefix)));
        if shared {
            return Err(Error::InvalidArgument(format!(
                "config.json: /linux/sysctl: {name} is not in a namespace of the container"
            )));
        }
    }
    Ok(())
}

fn plan_namespaces(linux: &mut Linux, around: Surroundings) -> Result<Option<u32>> {
    let some = |all: &Option<Vec<LinuxIdMapping>>| all.as_ref().is_some_and(|all| !all.is_empty());
    let mapped = some(linux.uid_mappings()) && some(linux.gid_mappings());
    let namespaces = linux.namespaces_mut().as_mut().ok_or_else(no_mount_namespace)?;
    let joins_pids = shared::take_namespaces(namespaces, around)?;
    for namespace in namespaces.iter_mut() {
        use LinuxNamespaceType::{Ipc, Network, Time, User, Uts};
        if namespace.typ() == User && mapped {
            namespace.set_path(None);
        }
        if let Some(path) = namespace.path()
            && !matches!(namespace.typ(), Network | Ipc | Uts | Time)
        {
            let instead = match namespace.typ() {
                User => "; with uidMappings and gidMappings beside it there would be one like it",
                _ => "",
            };
            return Err(Error::InvalidArgument(format!(
                "config.json: the guest can't join the host's {} namespace {}{instead}",
                namespace.typ(),
                path.display()
            )));
        }
    }
    if !namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::Mount) {
        return Err(no_mount_namespace());
    }
    namespaces.retain(|n| n.path().is_none() && n.typ() != LinuxNamespaceType::Network);
    Ok(joins_pids)
}

/// Its mounts would be the agent's.
fn no_mount_namespace() -> Error {
    let text = "config.json: /linux/namespaces: a container needs a mount namespace of its own";
    Error::InvalidArgument(text.into())
}
#[cfg(test)]
mod tests;
