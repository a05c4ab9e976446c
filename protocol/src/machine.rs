//! What a virtual machine is made of: the VMM's whole configuration.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything the VMM needs to know to build one machine.
///
/// Paths are opened by the VMM before it gives up its privileges; nothing is opened afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to what KVM allows, at most [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// The most that it may be given while it runs.
    #[serde(default)]
    pub max: Size,
    /// Whether the guest may run virtual machines of its own: VMX or SVM is offered to it.
    #[serde(default)]
    pub nested: bool,
    /// Guest kernel: an ELF `vmlinux` or a `bzImage`.
    pub kernel: PathBuf,
    /// Guest image, loaded as the initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Words added to the kernel command line after the VMM's own.
    #[serde(default)]
    pub cmdline: String,
    /// Where the serial console is logged; bounded, created with mode 0600. `None`: thrown away.
    pub console_log: Option<PathBuf>,
    /// virtio-vsock device.
    pub vsock: Option<VsockConfig>,
    /// virtio-fs devices.
    #[serde(default)]
    pub shared_dirs: Vec<FsConfig>,
    /// How many disks and network interfaces it can have at once, see [`crate::control::Command::AttachDisk`] and
    /// [`crate::control::Command::AttachNetwork`]. Each slot takes an interrupt line, and the guest a look at its start.
    #[serde(default)]
    pub slots: u32,
    /// How the VMM confines itself before the guest runs.
    pub jail: JailConfig,
}

/// Most vCPUs of a machine: `NR_CPUS` of the guest's kernel, which would leave out the others in silence.
pub const MAX_VCPUS: u32 = 64;

/// What a running machine may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// vCPUs that may run, never fewer than [`MachineConfig::vcpus`].
    pub vcpus: u32,
    /// Memory besides [`MachineConfig::memory_mib`], MiB, in whole blocks of [`MEMORY_BLOCK_MIB`].
    pub added_mib: u64,
}

/// Memory that a running machine gets comes in blocks of so many MiB, or of a multiple, see [`memory_block_mib`].
pub const MEMORY_BLOCK_MIB: u64 = 128;

/// Where memory stops below 4 GiB, MiB: devices lie above, and memory goes on at [`HOLE_END_MIB`].
pub const HOLE_START_MIB: u64 = 3 << 10;

/// See [`HOLE_START_MIB`].
pub const HOLE_END_MIB: u64 = 4 << 10;

/// The blocks, in MiB, in which the kernel of a guest that starts with so much memory takes more: a part of one it
/// does not use. Linux's rule (`probe_memory_block_size` of `arch/x86/mm/init_64.c`): with 64 GiB of addresses or more
/// the largest block of at most 2 GiB that the end of memory is aligned to.
pub fn memory_block_mib(memory_mib: u64) -> u64 {
    const LARGE_MIB: u64 = 64 << 10;
    const LARGEST_BLOCK_MIB: u64 = 2 << 10;
    let hole = if memory_mib > HOLE_START_MIB { HOLE_END_MIB - HOLE_START_MIB } else { 0 };
    let end = memory_mib.saturating_add(hole);
    if end < LARGE_MIB {
        return MEMORY_BLOCK_MIB;
    }
    let alignment = 1 << end.trailing_zeros();
    alignment.clamp(MEMORY_BLOCK_MIB, LARGEST_BLOCK_MIB)
}

/// The virtio-vsock device. Host-initiated streams come by [`crate::control::Command::Connect`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// Host ports (CID 2) that the guest may connect to; any other is reset.
    pub host_ports: Vec<u32>,
}

/// One virtio-fs device, served by a vhost-user process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// Mount tag, at most 36 bytes.
    pub tag: String,
    /// Index, among the descriptors that came with the configuration, of a connected
    /// vhost-user socket to the file server.
    pub socket_fd: usize,
}

/// How the VMM confines itself before the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Becomes the process's uid and gid; not 0 except in tests.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// `false` only where the caller is not root (unit tests): then no namespaces, uid or root change,
    /// but no_new_privs and the seccomp filters all the same.
    pub namespaces: bool,
    /// Whether no thread of another machine may run on the same core at the same time, where the host's
    /// cores have several threads and its kernel can keep them apart.
    pub core_scheduling: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_large_where_there_is_much_memory_whose_end_allows_it() {
        for (memory_mib, block_mib) in [
            (128, 128),
            (3 << 10, 128),
            ((63 << 10) - 1, 128),
            (63 << 10, 2 << 10),
            (64 << 10, 1 << 10),
            (65 << 10, 2 << 10),
            ((64 << 10) + 256, 256),
            ((64 << 10) + 1, 128),
            (u64::MAX, 128),
        ] {
            assert_eq!(memory_block_mib(memory_mib), block_mib, "{memory_mib} MiB");
        }
    }
}
