//! What the configuration means: every value decided, and checked as far as it can be without the machine.

use crate::config::{Config, Root, RootWrites};
use crate::error::{Error, Result};
use crate::host::{blank_disk, processors};
use crate::oci::plan::disks::Writes;
use protocol::machine::MAX_VCPUS;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Decided settings of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Most vCPUs that a machine can grow to; fewer than `vcpus`: it doesn't grow.
    pub max_vcpus: u32,
    /// The same for memory, MiB.
    pub max_memory_mib: u64,
    /// Most disks and network interfaces that a machine has at once, at most [`MOST_DISKS`].
    pub max_disks: u32,
    /// Whether containers without a CPU limit get more vCPUs when they use those that they have.
    pub vcpus_by_use: bool,
    /// Whether guests may run virtual machines of their own: what they then reach of KVM is more than a guest needs.
    pub nested: bool,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest image.
    pub image: PathBuf,
    /// Words added to the kernel command line.
    pub kernel_params: String,
    /// From the start of the VMM until its agent has reported in.
    pub start_timeout: Duration,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// The file server's program.
    pub file_server: PathBuf,
    /// The program of the processes that stand for a pod's containers.
    pub stand_in: PathBuf,
    /// Whether machines never share a core at the same time, where cores have several threads.
    pub core_scheduling: bool,
    /// Directory of the sandboxes' state.
    pub state: PathBuf,
    /// Whether a sandbox's processes go where `linux.cgroupsPath` says.
    pub cgroups: bool,
    /// Whether others than its container change a root file system while it runs: then the guest trusts what it knows
    /// of it for a second only, else for ever.
    pub shared_roots: bool,
    /// Where it goes what containers write to their root file systems.
    pub writes: Writes,
    /// Whether the host's kernel serves guests' network interfaces: it reads what they write into their queues then.
    pub vhost_net: bool,
    /// Of which a VMM gives itself one as uid and gid, see [`crate::host::uid`].
    pub uids: RangeInclusive<u32>,
}

/// The first uid of a VMM unless configured: above those of people, services and usual ranges for containers.
const FIRST_UID: u32 = 0x7000_0000;

/// How many there are unless configured.
const UIDS: u32 = 65536;

/// The last uid; the next means none to system calls.
const LAST_UID: u32 = u32::MAX - 1;

/// The machine's interrupt lines for virtio devices, 19, less those of the five that each machine has: two file systems
/// (with and without what is written), vsock, entropy and the balloon.
pub const MOST_DISKS: u32 = 14;

/// Size of a container's own disk unless configured, MiB: what is not written takes no room on the host.
const ROOT_DISK_MIB: u64 = 100 << 10;

/// Least such size.
const MIN_ROOT_DISK_MIB: u64 = 16;

/// Least guest memory that a kernel and the agent fit into, MiB.
const MIN_MEMORY_MIB: u64 = 48;

impl Settings {
    /// Decides every value of `config`.
    ///
    /// # Errors
    /// A value that can't be right on any machine. What this machine's KVM allows is checked by the VMM.
    pub fn resolve(config: Config) -> Result<Self> {
        let Config { machine, paths, jail, host, root, network } = config;
        let settings = Self {
            vcpus: machine.vcpus.unwrap_or(1),
            memory_mib: machine.memory_mib.unwrap_or(128),
            max_vcpus: machine.max_vcpus.unwrap_or_else(default_max_vcpus),
            max_memory_mib: machine.max_memory_mib.unwrap_or_else(host_memory_mib),
            max_disks: machine.max_disks.unwrap_or(8),
            nested: machine.nested.unwrap_or(false),
            vcpus_by_use: machine.vcpus_by_use.unwrap_or(true),
            kernel: machine.kernel.unwrap_or_else(|| "/usr/share/kata-like/vmlinux".into()),
            image: machine.image.unwrap_or_else(|| "/usr/share/kata-like/guest.img".into()),
            kernel_params: machine.kernel_params.unwrap_or_default(),
            start_timeout: Duration::from_secs(machine.start_timeout_seconds.unwrap_or(60)),
            vmm: paths.vmm.unwrap_or_else(|| "/usr/libexec/kata-like/kata-like-vmm".into()),
            file_server: paths
                .file_server
                .unwrap_or_else(|| "/usr/libexec/kata-like/kata-like-fs".into()),
            stand_in: paths
                .stand_in
                .unwrap_or_else(|| "/usr/libexec/kata-like/kata-like-stand-in".into()),
            core_scheduling: jail.core_scheduling.unwrap_or(true),
            state: paths.state.unwrap_or_else(|| "/run/kata-like".into()),
            cgroups: host.cgroups.unwrap_or(true),
            shared_roots: root.shared.unwrap_or(false),
            writes: writes(&root)?,
            vhost_net: network.vhost_net.unwrap_or(false),
            uids: uids(jail.first_uid.unwrap_or(FIRST_UID), jail.uids.unwrap_or(UIDS))?,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        if self.vcpus == 0 {
            return Err(Error::InvalidArgument("machine.vcpus is 0: give at least 1".into()));
        }
        if self.vcpus > MAX_VCPUS {
            return Err(Error::InvalidArgument(format!(
                "machine.vcpus is {}: the guest's kernel takes at most {MAX_VCPUS} vCPUs",
                self.vcpus
            )));
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(Error::InvalidArgument(format!(
                "machine.memory_mib is {}: the guest needs at least {MIN_MEMORY_MIB}",
                self.memory_mib
            )));
        }
        if self.max_disks > MOST_DISKS {
            let asked = self.max_disks;
            return Err(Error::InvalidArgument(format!(
                "machine.max_disks is {asked}: a machine has room for {MOST_DISKS}"
            )));
        }
        if self.start_timeout.is_zero() {
            return Err(Error::InvalidArgument("machine.start_timeout_seconds is 0".into()));
        }
        Ok(())
    }
}

/// By default a disk where it is nobody's loss, and where it can be made.
fn writes(root: &Root) -> Result<Writes> {
    let bytes = root_disk(root.disk_mib.unwrap_or(ROOT_DISK_MIB))?;
    let shared = root.shared.unwrap_or(false);
    Ok(match root.writes {
        Some(RootWrites::Disk) => Writes::ToDisk(bytes),
        Some(RootWrites::Auto) | None if !shared && blank_disk::can_be_made() => {
            Writes::ToDiskInPods(bytes)
        }
        Some(RootWrites::Snapshot | RootWrites::Auto) | None => Writes::ToSnapshot,
    })
}

/// In bytes.
fn root_disk(mib: u64) -> Result<u64> {
    const MOST: u64 = 16 << 20;
    match mib {
        MIN_ROOT_DISK_MIB..=MOST => Ok(mib << 20),
        _ => Err(Error::InvalidArgument(format!(
            "root.disk_mib is {mib}: ext4 as it is made here has {MIN_ROOT_DISK_MIB} to {MOST}"
        ))),
    }
}

fn uids(first: u32, count: u32) -> Result<RangeInclusive<u32>> {
    let wrong = |what: &str| {
        let text = format!("jail.first_uid is {first} and jail.uids {count}: {what}");
        Err(Error::InvalidArgument(text))
    };
    match (first, count) {
        (0, _) => wrong("a VMM is not to be root"),
        (_, 0) => wrong("a sandbox needs one"),
        _ => match first.checked_add(count - 1) {
            Some(last) if last <= LAST_UID => Ok(first..=last),
            _ => wrong("there are no such uids"),
        },
    }
}

/// As many as the host has, but at most 8. Each that a machine could get is paid by all that never do: a thread that
/// waits and KVM's part of a vCPU on the host, and the guest kernel's data of a possible processor, some 300 KiB. Who
/// runs larger containers on a larger host raises it.
fn default_max_vcpus() -> u32 {
    const MOST: u32 = 8;
    processors::count().min(MOST)
}

/// All of the host's: what a machine is not given costs nothing.
fn host_memory_mib() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total() >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Settings> {
        Settings::resolve(toml::from_str(text).unwrap())
    }

    #[test]
    fn everything_has_a_default() {
        let settings = resolve("").unwrap();
        assert_eq!((settings.vcpus, settings.memory_mib), (1, 128));
        assert!(settings.max_vcpus >= 1 && settings.max_memory_mib >= 128);
        assert_eq!(settings.uids, 0x7000_0000..=0x7000_ffff);
    }

    #[test]
    fn values_that_no_machine_can_have_are_named() {
        for (text, name) in [
            ("[machine]\nvcpus = 0", "vcpus"),
            ("[machine]\nvcpus = 65", "vcpus"),
            ("[machine]\nmemory_mib = 1", "memory_mib"),
            ("[machine]\nmax_disks = 15", "max_disks"),
            ("[jail]\nfirst_uid = 0", "root"),
            ("[jail]\nuids = 0", "jail.uids"),
            ("[jail]\nfirst_uid = 4294967294\nuids = 2", "no such"),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
