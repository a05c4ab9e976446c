//! What the guest calls what the host shows it of a container.

use sha2::{Digest, Sha256};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where the guest finds a container's root file system.
pub fn rootfs(container: &str) -> PathBuf {
    shared(container).join("rootfs")
}

/// Where the guest finds a container's root file system if nobody writes to it.
pub fn layers(container: &str) -> PathBuf {
    Path::new(protocol::ports::LAYERS_DIR).join(container).join("rootfs")
}

/// Where the guest finds the source of a container's bind mount number `index`.
pub fn bind(container: &str, index: usize) -> PathBuf {
    shared(container).join("mounts").join(index.to_string())
}

/// Where the guest makes the node of a container's disk number `index`.
pub fn disk(container: &str, index: usize) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join(index.to_string())
}

/// Where the guest makes the node of what is on that disk from file number `part` on, of a disk of several.
pub fn disk_part(container: &str, index: usize, part: usize) -> PathBuf {
    disk(container, index).with_file_name(format!("{index}p{}", part + 1))
}

/// Where the guest mounts what a container has on disks, by its number.
pub fn disk_mount(container: &str, index: usize) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join(format!("mount-{index}"))
}

/// Where the guest shows a root file system of the host's with what the container writes on a disk above it.
pub fn covered_root(container: &str) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join("root")
}

/// Where the guest has the memory for what is written to such a root file system, if it is not on a disk.
pub fn above_root(container: &str) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join("above")
}

/// Where the guest has the memory that stands for what the host has at `source`.
pub fn memory(source: &Path) -> PathBuf {
    Path::new(protocol::ports::MEMORY_DIR).join(digest(source.as_os_str().as_bytes()))
}

/// What there is in the place of a container's id for a bind mount that several containers have. No id begins so.
pub fn place_of_all(described: &str) -> String {
    format!(".{}", digest(described.as_bytes()))
}

/// Where the guest finds such a mount, in whichever container.
pub fn of_all(place: &str) -> PathBuf {
    Path::new(protocol::ports::VOLUMES_DIR).join(place)
}

fn digest(of: &[u8]) -> String {
    Sha256::digest(of).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Where the guest shows a container a part of such memory, by its number.
pub fn sub_path(container: &str, index: usize) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join(format!("part-{index}"))
}

/// Where the guest mounts a bind of a container's once more, by its number, with flags that the container can't set.
pub fn timed(container: &str, index: usize) -> PathBuf {
    Path::new(protocol::ports::DISKS_DIR).join(container).join(format!("timed-{index}"))
}

fn shared(container: &str) -> PathBuf {
    Path::new(protocol::ports::SHARED_DIR).join(container)
}
