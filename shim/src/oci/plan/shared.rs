//! What the containers of a pod share: their sandbox has it, and so the guest.
//!
//! - Network, IPC and UTS are the guest's own; of the pause container, which would make new ones, as well.
//! - A PID namespace is a container's own, or that of another one where the spec names the PID namespace of the process
//!   which stands for that on the host: see [`crate::sandbox`]'s `stand_ins` for which that are.
//! - A directory of the host's that a container may write to is one in the guest, whoever mounts it so: by two ways a
//!   file would be two for the guest's kernel, and a socket in it, a lock or a mapping of one container's nothing to
//!   another's. Who mounts it read-only has it apart, as that is held on the host; but for an emptyDir: as it is the pod's
//!   alone, who may not write to it is the guest's affair.
//! - Memory of the host's that engines give a pod (`/dev/shm`, an emptyDir in memory) is memory of the guest: what one
//!   container maps of it the others see. It is as large as the host's, and the host's stays empty. Secrets are in
//!   memory as well, but have contents: they are shown as any directory.

use super::host::{Directory, Host, Memory};
use crate::error::{Error, Result};
use crate::guest::paths as guest_paths;
use crate::oci::pod::Part;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use std::path::{Path, PathBuf};

/// What a plan has to know of the container's sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What the container is in it.
    pub part: Part,
    /// The host's process that stands for it; 0: nobody knows of one.
    pub pid: u32,
}

/// Memory of the guest that its containers share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// In the guest.
    pub path: PathBuf,
    /// What it is like.
    pub memory: Memory,
}

/// A directory of a volume that a container mounts, made where the volume lacks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPath {
    /// In the guest.
    pub source: PathBuf,
    /// Where the guest is to show it, for that container alone.
    pub at: PathBuf,
    /// Permissions, where it is made.
    pub mode: u32,
    /// Owner and group, where it is made.
    pub owner: (u32, u32),
}

/// Where kubelet keeps emptyDirs.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The volume that stands for the source of a bind mount in a pod, if one does.
pub(super) fn volume(part: Part, mount: &Mount, source: &Path, host: &dyn Host) -> Option<Volume> {
    let is_shm = mount.destination() == Path::new(SHM);
    if part == Part::Alone || !(is_shm || is_empty_dir(source)) {
        return None;
    }
    let memory = host.memory(source)?;
    Some(Volume { path: guest_paths::memory(source), memory })
}

/// Whether a pod's containers have the source of a bind mount among them: a directory that is written to, or an emptyDir,
/// whole.
pub(super) fn is_among_all(part: Part, source: &Path, is_written: bool) -> bool {
    let parent = source.parent().and_then(Path::file_name);
    part != Part::Alone && (is_written || parent.is_some_and(|name| name == EMPTY_DIR))
}

fn is_empty_dir(path: &Path) -> bool {
    path.components().any(|name| name.as_os_str() == EMPTY_DIR)
}

/// The volume that stands for an emptyDir of which the source of a bind mount is a part, and that part of it, as the
/// container's with this number.
pub(super) fn sub_path(
    part: Part,
    source: &Path,
    (id, number): (&str, usize),
    host: &dyn Host,
) -> Option<(Volume, SubPath)> {
    let Directory { wholes, below, mode, owner } =
        (part != Part::Alone).then(|| host.part(source))??;
    let whole = wholes.into_iter().find(|whole| is_empty_dir(whole))?;
    let volume = Volume { path: guest_paths::memory(&whole), memory: host.memory(&whole)? };
    let source = volume.path.join(below);
    Some((volume, SubPath { source, at: guest_paths::sub_path(id, number), mode, owner }))
}

/// Where engines put memory that is for sharing.
const SHM: &str = "/dev/shm";

/// The volume that stands for a file system in memory which is a container's own by its spec, but all of a pod's are
/// meant to have: where the engine leaves the pod's to the runtime. Makes the mount one of it.
pub(super) fn take_shm(part: Part, mount: &mut Mount) -> Option<Volume> {
    let is_shm = mount.destination() == Path::new(SHM) && mount.typ().as_deref() == Some("tmpfs");
    if part != Part::Member || !is_shm {
        return None;
    }
    let mut memory = Memory { size: 0, mode: 0o1777, owner: (0, 0) };
    let options = mount.options_mut().get_or_insert_default();
    options.retain(|option| match option.split_once('=') {
        Some(("size", size)) => {
            memory.size = bytes(size).unwrap_or_default();
            false
        }
        Some(("mode", mode)) => {
            memory.mode = u32::from_str_radix(mode, 8).map_or(memory.mode, |mode| mode & 0o7777);
            false
        }
        _ => true,
    });
    options.push("rbind".into());
    let path = guest_paths::memory(Path::new(SHM));
    mount.set_typ(Some("bind".into())).set_source(Some(path.clone()));
    Some(Volume { path, memory })
}

/// As tmpfs(5) reads a size, but for per cents.
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match size[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Whether it is a namespace of the process that stands for the sandbox, so the sandbox's own.
pub(super) fn is_of(namespace: &LinuxNamespace, pid: u32) -> bool {
    let files = namespace.path().as_deref().and_then(Path::parent);
    pid != 0 && files == Some(Path::new(&format!("/proc/{pid}/ns")))
}

/// The network namespace of the process that stands for the sandbox, where there is one.
pub(crate) fn network_of(pid: u32) -> Option<PathBuf> {
    (pid != 0).then(|| format!("/proc/{pid}/ns/net").into())
}

/// Whose it is, of the paths that name a process's PID namespace.
fn process_of(path: &Path) -> Option<u32> {
    path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?.parse().ok()
}

/// What engines write for the host's own (`--network host`, `--ipc host`) is no such namespace.
///
/// # Errors
/// [`Error::Unimplemented`] names the first that is missing.
fn refuse_hosts(namespaces: &[LinuxNamespace]) -> Result<()> {
    for (kind, word) in [(LinuxNamespaceType::Network, "network"), (LinuxNamespaceType::Ipc, "IPC")]
    {
        if !namespaces.iter().any(|namespace| namespace.typ() == kind) {
            return Err(Error::Unimplemented(format!(
                "config.json: /linux/namespaces: what is in a machine can't be in the host's {word} namespace"
            )));
        }
    }
    Ok(())
}

/// Refuses what engines mean the host's network or IPC by, for a container of no pod. On the command line such a
/// container has its machine's.
///
/// # Errors
/// [`Error::Unimplemented`] names the first that it lacks.
pub fn refuse_hosts_of_engines(spec: &Spec) -> Result<()> {
    let part = spec.annotations().as_ref().map_or(Part::Alone, Part::of);
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    if part == Part::Alone { refuse_hosts(namespaces.unwrap_or_default()) } else { Ok(()) }
}

/// Takes the namespaces that the container shares with its sandbox out of those of its spec. Gives the process whose PID
/// namespace it is to have, if that is of one.
///
/// # Errors
/// [`Error::Unimplemented`] for a pod in the host's own network or IPC namespace.
pub(super) fn take_namespaces(
    namespaces: &mut Vec<LinuxNamespace>,
    around: Surroundings,
) -> Result<Option<u32>> {
    use LinuxNamespaceType::{Ipc, Pid, Uts};
    let joins =
        |n: &LinuxNamespace| (n.typ() == Pid).then(|| n.path().as_deref().and_then(process_of))?;
    let mut joined = None;
    match around.part {
        Part::Alone => {}
        Part::Member => {
            joined = namespaces.iter().find_map(joins);
            namespaces.retain(|namespace| joins(namespace).is_none());
        }
        Part::Pause => {
            refuse_hosts(namespaces)?;
            namespaces.retain(|namespace| !matches!(namespace.typ(), Ipc | Uts));
        }
    }
    Ok(joined)
}
