//! Resource limits: a process has those of the sandbox where its specification sets none.

use nix::errno::Errno;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};

/// The highest limit of open files that the kernel takes (`fs.nr_open`).
const MAX_FILES: &str = "/proc/sys/fs/nr_open";

/// Adds the sandbox's limits to those that `process` has of its own.
pub fn complete(process: &mut Process, sandboxes: &[PosixRlimit]) {
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in sandboxes {
        if !limits.iter().any(|own| own.typ() == limit.typ()) {
            limits.extend(within_reach(limit));
        }
    }
    process.set_rlimits(Some(limits));
}

/// A host may allow more open files than the guest's kernel can.
fn within_reach(limit: &PosixRlimit) -> Option<PosixRlimit> {
    if limit.typ() != PosixRlimitType::RlimitNofile {
        return Some(*limit);
    }
    let most = crate::guest::boot::read_number(MAX_FILES, "").unwrap_or(u64::MAX);
    let builder = PosixRlimitBuilder::default().typ(limit.typ());
    builder.soft(limit.soft().min(most)).hard(limit.hard().min(most)).build().ok()
}

/// Raises this process's hard limits to what `process`, its descendant, is to have: in a user namespace that one
/// has no right to.
///
/// # Errors
/// What the kernel refuses.
pub fn make_room(process: &Process) -> Result<(), Errno> {
    for limit in process.rlimits().iter().flatten() {
        let resource = limit.typ() as u32;
        let mut own = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one structure.
        Errno::result(unsafe { libc::getrlimit(resource, &raw mut own) })?;
        if limit.hard() > own.rlim_max {
            own.rlim_max = limit.hard();
            // SAFETY: the kernel reads one structure.
            Errno::result(unsafe { libc::setrlimit(resource, &raw const own) })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_specifications_own_limits_count_and_files_stay_within_the_kernels_reach() {
        let limit =
            |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
        let limits = |all: &[serde_json::Value]| -> Vec<PosixRlimit> {
            serde_json::from_value(json!(all)).unwrap()
        };
        let mut process = Process::default();
        process.set_rlimits(Some(limits(&[limit("RLIMIT_CORE", 1, 2)])));
        let most: u64 = std::fs::read_to_string(MAX_FILES).unwrap().trim().parse().unwrap();
        let all = [
            limit("RLIMIT_CORE", 5, 6),
            limit("RLIMIT_NPROC", 7, u64::MAX),
            limit("RLIMIT_NOFILE", 8, u64::MAX),
        ];
        complete(&mut process, &limits(&all));
        let expected = [
            limit("RLIMIT_CORE", 1, 2),
            limit("RLIMIT_NPROC", 7, u64::MAX),
            limit("RLIMIT_NOFILE", 8, most),
        ];
        assert_eq!(process.rlimits().clone().unwrap(), limits(&expected));
    }
}
