//! Resource limits: a process has those of the sandbox where its specification sets none.
//!
//! libcontainer would set them before it makes the process, and needs more descriptors, memory and processes for that
//! than the process itself may have. So they are set last, before the filter, which may forbid it.

use nix::errno::Errno;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};

/// The highest limit of open files that the kernel takes (`fs.nr_open`).
const MAX_FILES: &str = "/proc/sys/fs/nr_open";

/// Those of a process to be made.
#[derive(Debug, Default)]
pub struct Limits(Vec<PosixRlimit>);

/// Why a process can't have its limits.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// A limit above what it may be raised to.
    #[error("process.rlimits: {0}: the soft limit {1} is above the hard limit {2}")]
    SoftAboveHard(PosixRlimitType, u64, u64),
    /// The kernel refuses.
    #[error("process.rlimits: {0} of {1}")]
    Refused(PosixRlimitType, u64, #[source] Errno),
}

impl Limits {
    /// Takes those that `process` has of its own, and of the sandbox's the others.
    ///
    /// # Errors
    /// [`LimitError::SoftAboveHard`].
    pub fn take_over(process: &mut Process, sandboxes: &[PosixRlimit]) -> Result<Self, LimitError> {
        let mut limits = process.rlimits().clone().unwrap_or_default();
        for limit in sandboxes {
            if !limits.iter().any(|own| own.typ() == limit.typ()) {
                limits.extend(within_reach(limit));
            }
        }
        process.set_rlimits(None);
        match limits.iter().find(|limit| limit.soft() > limit.hard()) {
            Some(limit) => Err(LimitError::SoftAboveHard(limit.typ(), limit.soft(), limit.hard())),
            None => Ok(Self(limits)),
        }
    }

    /// Raises this process's hard limits to what the process, its descendant, is to have: that one has no right to.
    ///
    /// # Errors
    /// [`LimitError::Refused`].
    pub fn make_room(&self) -> Result<(), LimitError> {
        self.each(|limit, own| {
            own.rlim_max = own.rlim_max.max(limit.hard());
        })
    }

    /// Sets them on this process.
    ///
    /// # Errors
    /// [`LimitError::Refused`].
    pub fn set(&self) -> Result<(), LimitError> {
        self.each(|limit, own| {
            *own = libc::rlimit { rlim_cur: limit.soft(), rlim_max: limit.hard() };
        })
    }

    fn each(&self, change: fn(&PosixRlimit, &mut libc::rlimit)) -> Result<(), LimitError> {
        self.0.iter().try_for_each(|limit| {
            let resource = limit.typ() as u32;
            let refused = |errno| LimitError::Refused(limit.typ(), limit.hard(), errno);
            let mut own = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the kernel writes one structure.
            Errno::result(unsafe { libc::getrlimit(resource, &raw mut own) }).map_err(refused)?;
            change(limit, &mut own);
            // SAFETY: the kernel reads one structure.
            Errno::result(unsafe { libc::setrlimit(resource, &raw const own) }).map_err(refused)?;
            Ok(())
        })
    }
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
        let taken = Limits::take_over(&mut process, &limits(&all)).unwrap();
        let expected = [
            limit("RLIMIT_CORE", 1, 2),
            limit("RLIMIT_NPROC", 7, u64::MAX),
            limit("RLIMIT_NOFILE", 8, most),
        ];
        assert_eq!(taken.0, limits(&expected));
        assert_eq!(process.rlimits(), &None);
        process.set_rlimits(Some(limits(&[limit("RLIMIT_CORE", 3, 2)])));
        let refused = Limits::take_over(&mut process, &[]).unwrap_err().to_string();
        assert_eq!(
            refused,
            "process.rlimits: RLIMIT_CORE: the soft limit 3 is above the hard limit 2"
        );
    }
}
