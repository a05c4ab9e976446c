//! The disks of a sandbox's containers: in the machine from a container's create to its delete.

use super::Sandbox;
use crate::error::Result;
use crate::guest::paths as guest_paths;
use crate::host::blocking::blocking;
use crate::host::disk::OpenDisk;
use crate::host::{blank_disk, disk};
use crate::oci::plan::disks::{Disk, DiskMount, Disks, Overlay, Source, Upper};
use crate::oci::plan::host::Memory;
use crate::oci::plan::shared::{SubPath, Volume};
use crate::oci::plan::{SharedBind, Timed};
use protocol::control::part_offsets;
use protocol::{agent as api, ports};
use std::path::Path;
use std::sync::atomic::Ordering;

impl Sandbox {
    /// Attaches the disks of container `id`; gives what the agent is to know of them. After an error those that
    /// were attached still are: see [`Sandbox::detach_disks`].
    ///
    /// # Errors
    /// One can't be opened or used; or the machine has no room for it, or has ended.
    pub(super) async fn attach_disks(&self, id: &str, disks: &[Disk]) -> Result<Vec<api::Disk>> {
        let mut attached = Vec::new();
        for disk in disks {
            let opened = disk.clone();
            let open = move || match &opened.source {
                Source::Blank { directory, bytes, named } => {
                    blank_disk::make(directory, *bytes, *named)
                }
                Source::One(_) | Source::Several(_) => disk::open(&opened),
            };
            let path = disk.source.path();
            let opened = blocking("open the disk", path, open).await?;
            let device = self.0.vm.attach_disk(&opened, disk.read_only).await?;
            let lasting = !disk.read_only && !matches!(disk.source, Source::Blank { .. });
            self.disks().entry(id.to_owned()).or_default().push((device, lasting));
            tracing::info!("{id}: disk {} is device {device}", path.display());
            let (host_major, host_minor) = disk.numbers;
            let partitions = partitions(&disk.source, &opened);
            let disk =
                api::Disk { device, host_major, host_minor, partitions, ..Default::default() };
            attached.push(disk);
        }
        Ok(attached)
    }

    /// Whether the machine has as many slots for disks and network interfaces left.
    pub(super) fn has_room(&self, disks: usize) -> bool {
        let attached: usize = self.disks().values().map(Vec::len).sum();
        let interfaces = self.0.interfaces.load(Ordering::Relaxed);
        attached + interfaces + disks <= self.0.slots as usize
    }

    /// Takes the disks of container `id` out of the machine; the guest shall have let go of them.
    pub(super) async fn detach_disks(&self, id: &str) {
        let devices = self.disks().remove(id).unwrap_or_default();
        for (device, _) in devices {
            if let Err(error) = self.0.vm.detach_disk(device).await {
                tracing::warn!("{id}: disk {device}: {}", error.chain());
            }
        }
    }

    /// Whether container `id` has any that it writes to and that outlive it.
    pub(super) fn has_lasting_disks(&self, id: &str) -> bool {
        self.disks().get(id).is_some_and(|disks| disks.iter().any(|(_, lasting)| *lasting))
    }
}

/// What the guest divides a disk into.
fn partitions(source: &Source, opened: &OpenDisk) -> Vec<api::Partition> {
    let Source::Several(_) = source else { return Vec::new() };
    let sizes: Vec<u64> = opened.parts.iter().map(|(_, bytes)| *bytes).collect();
    let partition = |(offset, bytes)| api::Partition { offset, bytes, ..Default::default() };
    part_offsets(&sizes).map(partition).collect()
}

/// The memory that containers of a pod share, for the guest to mount where it has not.
pub(super) fn memory(volumes: &[Volume]) -> impl Iterator<Item = api::Storage> {
    volumes.iter().map(|Volume { path, memory: Memory { size, mode, owner: (uid, gid) } }| {
        let mut options =
            vec![format!("mode={mode:o}"), format!("uid={uid}"), format!("gid={gid}")];
        options.extend((*size > 0).then(|| format!("size={size}")));
        api::Storage {
            source: "tmpfs".into(),
            fstype: "tmpfs".into(),
            options,
            mount_point: path.display().to_string(),
            of_sandbox: true,
            ..Default::default()
        }
    })
}

/// Directories of the host's that containers share. Each is mounted before any container has it: its file system would
/// else be one for each of them, as the guest's kernel mounts what the host has mounted when somebody looks into it.
pub(super) fn for_all(shared: &[SharedBind]) -> impl Iterator<Item = api::Storage> {
    shared.iter().map(|SharedBind { place, .. }| api::Storage {
        source: guest_paths::bind(place, 0).display().to_string(),
        options: vec!["bind".into()],
        mount_point: guest_paths::of_all(place).display().to_string(),
        of_sandbox: true,
        ..Default::default()
    })
}

/// Binds that a container can't give their flags.
pub(super) fn timed(all: &[Timed]) -> impl Iterator<Item = api::Storage> {
    all.iter().map(|Timed { source, at, flags }| api::Storage {
        source: source.display().to_string(),
        options: [&["bind".to_owned()][..], flags].concat(),
        mount_point: at.display().to_string(),
        ..Default::default()
    })
}

/// Parts of such memory that a container mounts.
pub(super) fn sub_paths(all: &[SubPath]) -> impl Iterator<Item = api::Storage> {
    all.iter().map(|SubPath { source, at, mode, owner: (uid, gid) }| api::Storage {
        source: source.display().to_string(),
        options: vec![
            "bind".into(),
            format!("mode={mode:o}"),
            format!("uid={uid}"),
            format!("gid={gid}"),
        ],
        mount_point: at.display().to_string(),
        ..Default::default()
    })
}

/// What the guest is to mount from the disks of container `id`.
pub(super) fn storages(id: &str, disks: &Disks) -> Vec<api::Storage> {
    let storage = |(index, mount): (usize, &DiskMount)| api::Storage {
        source: match mount.part {
            Some(part) => guest_paths::disk_part(id, mount.disk, part),
            None => guest_paths::disk(id, mount.disk),
        }
        .display()
        .to_string(),
        fstype: mount.fstype.clone(),
        options: mount.options.clone(),
        mount_point: guest_paths::disk_mount(id, index).display().to_string(),
        ..Default::default()
    };
    let root = disks.root.iter().flat_map(|root| put_together(id, root));
    disks.mounts.iter().enumerate().map(storage).chain(root).collect()
}

/// Memory for the directories and files on which a container's mounts are, where its root file system is read-only.
fn for_mount_points(at: &Path) -> api::Storage {
    api::Storage {
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        options: ["size=1m", "mode=0755"].map(String::from).into(),
        mount_point: at.display().to_string(),
        ..Default::default()
    }
}

/// All containers' root file systems, for those who do not write to them.
fn layers() -> api::Storage {
    api::Storage {
        source: ports::LAYERS_TAG.into(),
        fstype: "virtiofs".into(),
        options: vec!["ro".into()],
        mount_point: ports::LAYERS_DIR.into(),
        of_sandbox: true,
        ..Default::default()
    }
}

/// What a root file system of several becomes.
fn put_together(id: &str, root: &Overlay) -> Vec<api::Storage> {
    let at = |index| guest_paths::disk_mount(id, index).display().to_string();
    let mut storages = Vec::new();
    let lower: Vec<_> = if root.lower.is_empty() {
        storages.push(layers());
        vec![guest_paths::layers(id).display().to_string()]
    } else {
        root.lower.clone().map(at).collect()
    };
    let mut options: Vec<_> = lower.iter().map(|path| format!("lowerdir+={path}")).collect();
    let upper = match root.upper {
        Upper::None => None,
        Upper::Memory => {
            let at = guest_paths::above_root(id);
            storages.push(for_mount_points(&at));
            Some(at.display().to_string())
        }
        Upper::Passing(index) | Upper::Lasting(index) => Some(at(index)),
    };
    match upper {
        None => options.push("ro".into()),
        Some(upper) => {
            options.extend([format!("upperdir={upper}/upper"), format!("workdir={upper}/work")]);
        }
    }
    // Nothing that is written there outlives the container, so nothing waits for it to be on the disk.
    options.extend(matches!(root.upper, Upper::Passing(_)).then(|| "volatile".to_owned()));
    options.extend(root.options.iter().cloned());
    storages.push(api::Storage {
        source: "overlay".into(),
        fstype: "overlay".into(),
        options,
        mount_point: guest_paths::covered_root(id).display().to_string(),
        ..Default::default()
    });
    storages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_several_files_has_a_partition_for_each() {
        let file = || tempfile::tempfile().unwrap();
        let opened = OpenDisk { parts: vec![(file(), 1), (file(), 4096), (file(), 4097)] };
        let paths = ["/a", "/b", "/c"].map(Into::into);
        let made: Vec<_> = partitions(&Source::Several(paths.into()), &opened)
            .into_iter()
            .map(|partition| (partition.offset, partition.bytes))
            .collect();
        assert_eq!(made, [(0, 4096), (4096, 4096), (8192, 8192)]);
        assert!(partitions(&Source::One("/a".into()), &opened).is_empty());
        let mount = |part| DiskMount { disk: 3, part, fstype: "erofs".into(), options: vec![] };
        let disks = Disks { mounts: vec![mount(Some(0)), mount(None)], ..Disks::default() };
        let sources: Vec<_> = storages("c", &disks).into_iter().map(|s| s.source).collect();
        assert_eq!(sources, ["/run/kata-like/disks/c/3p1", "/run/kata-like/disks/c/3"]);
    }

    #[test]
    fn a_root_is_put_together_of_what_is_mounted_before_it() {
        let storages = |lower, upper| {
            let options = vec!["index=off".to_owned()];
            put_together("c", &Overlay { lower, upper, options })
        };
        let at = |n| format!("/run/kata-like/disks/c/mount-{n}");
        let [root] = &storages(0..2, Upper::Lasting(2))[..] else { panic!() };
        assert_eq!(root.mount_point, "/run/kata-like/disks/c/root");
        let written = |at: &str| [format!("upperdir={at}/upper"), format!("workdir={at}/work")];
        let layers = [0, 1].map(|n| format!("lowerdir+={}", at(n)));
        let index = ["index=off".to_owned()];
        assert_eq!(root.options, [&layers[..], &written(&at(2)), &index].concat());
        let [memory, root] = &storages(0..2, Upper::Memory)[..] else { panic!() };
        assert_eq!(memory.fstype, "tmpfs");
        assert_eq!(root.options, [&layers[..], &written(&memory.mount_point), &index].concat());
        let [root] = &storages(0..2, Upper::None)[..] else { panic!() };
        assert_eq!(root.options, [&layers[..], &["ro".to_owned()], &index].concat());
        let [shown, root] = &storages(0..0, Upper::Passing(0))[..] else { panic!() };
        assert!(shown.of_sandbox && shown.mount_point == ports::LAYERS_DIR);
        let hosts = [format!("lowerdir+={}/c/rootfs", ports::LAYERS_DIR)];
        let expected = [&hosts[..], &written(&at(0)), &["volatile".to_owned()], &index].concat();
        assert_eq!(root.options, expected);
    }
}
