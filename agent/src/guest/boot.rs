//! From a kernel with an initramfs to a guest that containers can run in.
//!
//! The initramfs itself cannot be left by `pivot_root`, which is how a container gets its root. So the
//! guest's root is a tmpfs, moved over the initramfs; everything else is mounted in it.

use crate::guest::cgroup;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Where the new root is mounted until it is the root.
const NEW_ROOT: &str = "/.root";

/// File systems of the guest, in the order in which they are mounted.
const MOUNTS: &[Mount] = &[
    Mount { kind: "devtmpfs", at: "dev", flags: NO_SUID, data: "mode=0755" },
    Mount { kind: "devpts", at: "dev/pts", flags: NO_SUID, data: "gid=5,mode=0620,ptmxmode=0666" },
    Mount { kind: "tmpfs", at: "dev/shm", flags: NO_EXEC, data: "mode=1777" },
    Mount { kind: "proc", at: "proc", flags: NO_EXEC, data: "" },
    Mount { kind: "sysfs", at: "sys", flags: NO_EXEC, data: "" },
    Mount { kind: "cgroup2", at: "sys/fs/cgroup", flags: NO_EXEC, data: CGROUP_OPTIONS },
];

/// `favordynmods` is the kernel's default here. With these two a container that is given its cgroup
/// cannot change its own limits, and its memory protection holds for its children.
const CGROUP_OPTIONS: &str = "nsdelegate,memory_recursiveprot";

const NO_SUID: MsFlags = MsFlags::MS_NOSUID;
const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    data: &'static str,
}

/// Directories of the new root that no mount brings along.
const DIRECTORIES: &[&str] = &["tmp", "run/kata-like/containers", "run/kata-like/bundles"];

/// Settings of the guest's kernel, each left alone where it does not exist.
const SYSCTLS: &[(&str, &str)] = &[
    // Containers in user namespaces and those that join the guest's do not see kernel addresses.
    ("kernel/kptr_restrict", "1"),
    // A link or pipe planted in a world-writable directory is not followed for somebody else.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "1"),
    // Open files count as their container's memory: no other limit is needed, as systemd sets it on hosts.
    ("fs/nr_open", "1073741816"),
    ("fs/file-max", "9223372036854775807"),
];

/// Limits of this process, soft and hard.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::RLIMIT_NOFILE, 1 << 20),
    (Resource::RLIMIT_NPROC, RLIM_INFINITY),
    (Resource::RLIMIT_SIGPENDING, RLIM_INFINITY),
];

/// Threads that the guest keeps for its kernel and the agent out of the kernel's limit.
const RESERVED_THREADS: u64 = 256;

/// Memory for each thread, KiB: twice what the kernel needs for it. It counts as its container's.
const KIB_PER_THREAD: u64 = 64;

const THREADS_MAX: &str = "/proc/sys/kernel/threads-max";

/// Memory that the guest keeps for itself out of what there is, KiB.
const RESERVED_MEMORY_KIB: u64 = 16 * 1024;

/// Everything, in order.
///
/// # Errors
/// The first step that fails. Without it the guest is of no use.
pub fn prepare() -> anyhow::Result<()> {
    umask(Mode::from_bits_retain(0o022));
    make_root().context("making the root")?;
    for directory in DIRECTORIES {
        fs::create_dir_all(directory).with_context(|| format!("creating {directory}"))?;
    }
    for mount in MOUNTS {
        mount_one(mount).with_context(|| format!("mounting {} on {}", mount.kind, mount.at))?;
    }
    enter_root().context("entering the root")?;
    for (name, value) in SYSCTLS {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    raise_limits();
    prepare_cgroups().context("preparing the cgroups")?;
    raise_loopback().context("raising the loopback device")
}

/// Mounts the new root and goes there.
fn make_root() -> anyhow::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    // In tests the root is shared with the host's; in a guest this changes nothing.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("root"), NEW_ROOT, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    chdir(NEW_ROOT)?;
    Ok(())
}

fn mount_one(what: &Mount) -> anyhow::Result<()> {
    fs::create_dir_all(what.at)?;
    let (kind, flags) = (Some(what.kind), what.flags);
    match mount(kind, what.at, kind, flags, Some(what.data)) {
        // An option that this kernel does not know: the defaults do.
        Err(Errno::EINVAL) => mount(kind, what.at, kind, flags, None::<&str>)?,
        result => result?,
    }
    Ok(())
}

/// Puts the new root, where this process is, over the old one.
fn enter_root() -> anyhow::Result<()> {
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// The kernel gives the first process few files and, in a small guest, few processes and signals. Containers that
/// the host sets no limits for inherit these.
fn raise_limits() {
    for (resource, value) in LIMITS {
        // One that is kept is a limit, no fault.
        let _ = setrlimit(*resource, *value, *value);
    }
}

/// Delegates every controller, and keeps a little for the agent whatever the containers do.
fn prepare_cgroups() -> anyhow::Result<()> {
    let root = Path::new(cgroup::ROOT);
    let parent = root.join(cgroup::PARENT);
    fs::create_dir_all(&parent)?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    for directory in [root, &parent] {
        for controller in controllers.split_whitespace() {
            // One that cannot be delegated is missed by the container that needs it, by name.
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    limit_containers();
    Ok(())
}

/// Lets all containers together have the memory that there is, and as many threads as fit into half of it, but for
/// a little of both.
pub fn limit_containers() {
    let Some(total) = read_number("/proc/meminfo", "MemTotal:") else { return };
    let parent = Path::new(cgroup::ROOT).join(cgroup::PARENT);
    let memory = total.saturating_sub(RESERVED_MEMORY_KIB).max(total / 2) * 1024;
    let _ = fs::write(parent.join("memory.max"), memory.to_string());
    let most = read_number("/proc/sys/kernel/pid_max", "").unwrap_or(u64::MAX);
    let wanted = threads(total).min(most);
    // The kernel's own figure is of the memory at boot. It is raised only: what runs goes on.
    if read_number(THREADS_MAX, "").is_some_and(|now| now < wanted) {
        let _ = fs::write(THREADS_MAX, wanted.to_string());
    }
    let threads = read_number(THREADS_MAX, "").unwrap_or(wanted).min(wanted);
    let _ = fs::write(
        parent.join("pids.max"),
        threads.saturating_sub(RESERVED_THREADS).max(1).to_string(),
    );
}

/// How many threads a guest of so much memory, KiB, is to have.
fn threads(memory_kib: u64) -> u64 {
    (memory_kib / KIB_PER_THREAD).max(2 * RESERVED_THREADS)
}

/// The first number after `label` at the start of a line.
pub fn read_number(path: &str, label: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `ip link set lo up`, for containers that share the guest's network.
fn raise_loopback() -> anyhow::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one ifreq, and the socket is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_more_threads_the_more_memory_it_has_and_always_some_to_spare() {
        assert_eq!([16, 100, 8192].map(|mib| threads(mib << 10)), [512, 1600, 131_072]);
    }
}
