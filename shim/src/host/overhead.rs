//! What a sandbox takes of its host beside what its containers' own figures tell: its three processes,
//! and those that stand for containers.
//!
//! A container's figures are those of its cgroup in the guest. All of that is spent by the VMM as well, which runs the
//! guest and holds its memory, so the two are told apart and must not be added.

use crate::error::{Error, Result};
use crate::host::persist::ProcessId;
use procfs::process::Process;
use std::io;
use std::iter::Sum;
use std::time::Duration;

/// What one process has used, and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time in user mode, a guest's running excepted.
    pub user: Duration,
    /// Processor time in the kernel.
    pub kernel: Duration,
    /// Processor time for which a guest has run.
    pub guest: Duration,
    /// Memory of its own, bytes: its share of each page (PSS), guest memory excepted.
    pub memory: u64,
    /// Guest memory that is in the host's, bytes: its share of each page.
    pub guest_memory: u64,
}

/// What the processes of a sandbox have used, and hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overhead {
    /// The process that owns the sandbox: containerd's shim, or the command line's monitor.
    pub owner: Usage,
    /// The virtual machine.
    pub vmm: Usage,
    /// The file server.
    pub file_server: Usage,
    /// Those that stand for containers of a pod, together.
    pub stand_ins: Usage,
    /// How many processes all of these are.
    pub processes: u64,
}

impl Overhead {
    /// What the processes take together.
    pub fn total(&self) -> Usage {
        [self.owner, self.vmm, self.file_server, self.stand_ins].into_iter().sum()
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            user: sum.user + one.user,
            kernel: sum.kernel + one.kernel,
            guest: sum.guest + one.guest,
            memory: sum.memory + one.memory,
            guest_memory: sum.guest_memory + one.guest_memory,
        })
    }
}

/// Reads the figures of a process.
///
/// # Errors
/// It has ended, or `/proc` can't be read.
pub fn of(process: ProcessId) -> Result<Usage> {
    read(process).map_err(Error::path("read what is used by", format!("/proc/{}", process.pid)))
}

fn read(id: ProcessId) -> io::Result<Usage> {
    let failed = io::Error::other;
    let process = Process::new(id.pid).map_err(failed)?;
    let stat = process.stat().map_err(failed)?;
    if stat.starttime != id.start {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let ticks =
        |ticks: u64| Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    // The kernel counts a guest's running as user mode too.
    let guest = stat.guest_time.unwrap_or_default();
    let rollup = process.smaps_rollup().map_err(failed)?.memory_map_rollup;
    let share =
        |name: &str| rollup.iter().filter_map(|map| map.extension.map.get(name)).sum::<u64>();
    // Nothing else of these processes is shared memory.
    let guest_memory = share("Pss_Shmem");
    Ok(Usage {
        user: ticks(stat.utime.saturating_sub(guest)),
        kernel: ticks(stat.stime),
        guest: ticks(guest),
        memory: share("Pss").saturating_sub(guest_memory),
        guest_memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_and_another_of_its_pid_is_gone() {
        let mut spent = 0u64;
        while of(ProcessId::own().unwrap()).unwrap().user.is_zero() {
            spent = spent.wrapping_add((0..1_000_000u64).sum());
        }
        let held = vec![1u8; 4 << 20];
        let own = of(ProcessId::own().unwrap()).unwrap();
        assert!(own.memory > held.len() as u64, "{own:?} {spent}");
        assert!(own.guest.is_zero() && own.guest_memory == 0, "{own:?}");
        let earlier = ProcessId { start: 1, ..ProcessId::own().unwrap() };
        assert!(of(earlier).unwrap_err().to_string().contains(&earlier.pid.to_string()));
    }

    #[test]
    fn the_total_is_of_all_processes() {
        let usage = |n: u64| Usage { memory: n, guest_memory: n << 8, ..Usage::default() };
        let overhead = Overhead {
            owner: usage(1),
            vmm: usage(2),
            file_server: usage(4),
            stand_ins: usage(8),
            processes: 5,
        };
        assert_eq!(overhead.total(), usage(15));
    }
}
