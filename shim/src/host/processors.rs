//! The host's processors, whichever of them this process is kept to (systemd's `CPUAffinity`, taskset): a machine is not.

use crate::host::number_list::NumberList;

/// Those that are online.
pub fn online() -> NumberList {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    NumberList::parse(online.trim()).unwrap_or_default()
}

/// How many these are, at least one.
pub fn count() -> u32 {
    online().count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    #[test]
    fn a_thread_that_is_kept_to_one_counts_all() {
        let all = count();
        let of_thread = std::thread::spawn(|| {
            let may = sched_getaffinity(Pid::from_raw(0)).unwrap();
            let first = (0..CpuSet::count()).find(|&cpu| may.is_set(cpu).unwrap()).unwrap();
            let mut one = CpuSet::new();
            one.set(first).unwrap();
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            count()
        });
        assert_eq!(of_thread.join().unwrap(), all);
        let in_all = NumberList::parse("0").unwrap();
        assert!(online().has_all(&in_all), "the first is always online here");
    }
}
