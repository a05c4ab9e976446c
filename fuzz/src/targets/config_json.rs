//! A bundle's config.json, from the file to what is sent to the guest, and the limits of an update.

use crate::scratch;
use sandbox::number_list::NumberList;
use sandbox::plan::Created;
use sandbox::plan::disks::Writes;
use sandbox::plan::host::{Directory, DirectoryId, Host, Kind, Memory, MountOf, Numbers};
use sandbox::{bundle, plan};
use std::path::{Path, PathBuf};

/// The process that stands for the sandbox.
const PID: u32 = 7;

/// Every path is a block device, a file system in memory, a directory with mounts below it, or a part of a volume.
struct Disks;

impl Host for Disks {
    fn kind(&self, _: &Path) -> Kind {
        Kind::Block((8, 16))
    }

    fn block_device(&self, _: Numbers) -> Option<PathBuf> {
        Some("/dev/sdb".into())
    }

    fn mount_of(&self, _: &Path) -> MountOf {
        let directory = Some(DirectoryId { mount: 1, device: 1, inode: 1 });
        MountOf { options: vec!["nosuid".to_owned()], mounts_below: true, directory }
    }

    fn memory(&self, _: &Path) -> Option<Memory> {
        Some(Memory { size: 4096, mode: 0o1777, owner: (0, 0) })
    }

    fn part(&self, path: &Path) -> Option<Directory> {
        let below = path.strip_prefix("/volume").ok()?.to_owned();
        Some(Directory { wholes: vec!["/volume".into()], below, mode: 0o755, owner: (0, 0) })
    }

    fn processors(&self) -> NumberList {
        NumberList::default()
    }
}

/// Takes one input.
pub fn take(data: &[u8]) {
    let path = scratch::file("config.json");
    std::fs::write(&path, data).expect("a file");
    if let Some(directory) = path.parent()
        && let Ok(spec) = bundle::read_spec(directory)
        && let Ok(plan) = plan::container("id", spec, Vec::new(), Writes::ToSnapshot, PID, &Disks)
    {
        let sent = serde_json::to_vec(&plan.spec).expect("a spec is JSON");
        serde_json::from_slice::<oci_spec::runtime::Spec>(&sent).expect("the agent can read it");
        let (resources, disks) = (plan.resources, vec![(8, 16)]);
        let created = Created { resources, disks, has_cgroup: true, ..Created::default() };
        let _ = plan::update(data, &created);
    }
    let _ = plan::update(data, &Created::default());
    let _ = plan::exec(data);
}
