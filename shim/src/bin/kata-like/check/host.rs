//! The host itself: who runs this, its kernel, its cgroups, its memory.

use super::report::Finding;
use std::fs;

/// The oldest kernel we ask for: a long-term one that has every system call that the confinement and the
/// mounts use (the last was close_range, 5.9).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// What a sandbox's own processes take besides the guest's memory, MiB.
const OVERHEAD_MIB: u64 = 64;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

pub(super) fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        let remedy = "run it with sudo: mounts and namespaces are made for each machine";
        Finding::failed("user", "not root", remedy)
    }
}

pub(super) fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel_finding(release.trim())
}

fn kernel_finding(release: &str) -> Finding {
    let remedy = format!("use Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1);
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => Finding::ok("kernel", release),
        Some(_) => Finding::failed("kernel", format!("{release} is too old"), remedy),
        None => Finding::warning("kernel", format!("{release:?} is no version"), remedy),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn cgroups() -> Finding {
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1, or mount it: \
                  mount -t cgroup2 cgroup2 /sys/fs/cgroup";
    match nix::sys::statfs::statfs("/sys/fs/cgroup") {
        Ok(found) if found.filesystem_type().0 as u64 == CGROUP2_MAGIC => {
            let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
            let controllers = controllers.unwrap_or_default();
            Finding::ok("cgroups", format!("version 2 ({})", controllers.trim()))
        }
        Ok(_) => Finding::warning("cgroups", "not version 2 at /sys/fs/cgroup", remedy),
        Err(error) => Finding::warning("cgroups", format!("/sys/fs/cgroup: {error}"), remedy),
    }
}

/// Whether one more machine of the configured size fits.
pub(super) fn memory(machine_mib: u64) -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_finding(&text, machine_mib)
}

fn memory_finding(meminfo: &str, machine_mib: u64) -> Finding {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok());
    let needed = machine_mib + OVERHEAD_MIB;
    match available.map(|kib| kib / 1024) {
        None => Finding::warning("memory", "/proc/meminfo does not say", "mount /proc"),
        Some(mib) if mib < needed => Finding::failed(
            "memory",
            format!("{mib} MiB available, a machine takes up to {needed} MiB"),
            "free some, or lower machine.memory_mib in the configuration",
        ),
        Some(mib) => Finding::ok("memory", format!("{mib} MiB available, {needed} MiB a machine")),
    }
}

/// Whether guests' memory, which is shared with the file server, can lie in huge pages.
pub(super) fn huge_pages() -> Finding {
    const POLICY: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    huge_pages_finding(fs::read_to_string(POLICY).ok().as_deref(), POLICY)
}

/// `policy` has the one that holds in brackets (`transhuge.rst` of the kernel's documents).
fn huge_pages_finding(policy: Option<&str>, file: &str) -> Finding {
    const WHAT: &str = "huge pages";
    let chosen = policy.and_then(|text| text.split(['[', ']']).nth(1));
    match chosen {
        Some(chosen @ ("always" | "within_size" | "advise" | "force")) => {
            Finding::ok(WHAT, format!("for shared memory: {chosen}"))
        }
        Some(chosen) => Finding::warning(
            WHAT,
            format!("none for shared memory ({chosen}), so none for guests: they are slower"),
            format!("echo advise > {file}, and the same at each start of the host"),
        ),
        None => Finding::warning(
            WHAT,
            "this kernel has none for shared memory: guests are slower",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

/// Whether two tenants' threads can be kept off the two threads of one core.
pub(super) fn core_scheduling(wanted: bool) -> Finding {
    let smt = fs::read_to_string("/sys/devices/system/cpu/smt/active");
    let siblings = smt.is_ok_and(|text| text.trim() == "1");
    core_scheduling_finding(siblings, wanted, jail::can_isolate_cores().is_ok())
}

fn core_scheduling_finding(siblings: bool, wanted: bool, possible: bool) -> Finding {
    const WHAT: &str = "cores";
    let shared = "several threads a core, which machines share: what one leaves in a core's caches \
                  another may measure";
    match (siblings, wanted, possible) {
        (false, ..) => Finding::ok(WHAT, "one thread each"),
        (true, true, true) => {
            Finding::ok(WHAT, "several threads each, never of two machines at once")
        }
        (true, false, _) => {
            let remedy = "leave out jail.core_scheduling in the configuration, unless all guests trust each other";
            Finding::warning(WHAT, shared, remedy)
        }
        (true, true, false) => Finding::warning(
            WHAT,
            shared,
            "use Linux 5.14 or newer with CONFIG_SCHED_CORE, or switch the threads off: \
             echo off > /sys/devices/system/cpu/smt/control",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, verdict) in [
            ("6.12.57+deb13-cloud-amd64", Verdict::Ok),
            ("5.15.0", Verdict::Ok),
            ("5.10.200", Verdict::Failed),
            ("4.19.0-27-amd64", Verdict::Failed),
            ("unknown", Verdict::Warning),
        ] {
            assert_eq!(kernel_finding(release).verdict(), verdict, "{release}");
        }
    }

    #[test]
    fn huge_pages_are_wanted_for_shared_memory() {
        for (policy, verdict) in [
            (Some("always within_size [advise] never deny force\n"), Verdict::Ok),
            (Some("always within_size advise [never] deny force\n"), Verdict::Warning),
            (Some("always within_size advise never [deny] force\n"), Verdict::Warning),
            (Some(""), Verdict::Warning),
            (None, Verdict::Warning),
        ] {
            assert_eq!(huge_pages_finding(policy, "/f").verdict(), verdict, "{policy:?}");
        }
    }

    #[test]
    fn threads_of_one_core_are_told_of_where_nothing_keeps_tenants_apart() {
        for (siblings, wanted, possible, verdict) in [
            (false, false, false, Verdict::Ok),
            (false, true, false, Verdict::Ok),
            (true, true, true, Verdict::Ok),
            (true, true, false, Verdict::Warning),
            (true, false, true, Verdict::Warning),
        ] {
            assert_eq!(core_scheduling_finding(siblings, wanted, possible).verdict(), verdict);
        }
    }

    #[test]
    fn memory_must_hold_one_more_machine() {
        let meminfo = "MemTotal: 9999999 kB\nMemAvailable:    262144 kB\n";
        assert_eq!(memory_finding(meminfo, 128).verdict(), Verdict::Ok);
        assert_eq!(memory_finding(meminfo, 256).verdict(), Verdict::Failed);
        assert_eq!(memory_finding("", 128).verdict(), Verdict::Warning);
    }
}
