//! The processors that an exec is to run on are named as the host has them, like CPU sets. Where the guest has none of
//! them they are left out, as CPU sets are: the exec would fail.

use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use oci_spec::runtime::Process;

/// Leaves out of a process's affinity what the guest can't do.
pub(super) fn keep_possible(process: &mut Process) {
    if process.exec_cpu_affinity().is_none() {
        return;
    }
    if let Ok(ours) = sched_getaffinity(Pid::from_raw(0)) {
        keep(process, &|cpu| ours.is_set(cpu).unwrap_or(false));
    }
}

fn keep(process: &mut Process, is_there: &dyn Fn(usize) -> bool) {
    let Some(mut affinity) = process.exec_cpu_affinity().clone() else { return };
    let possible = |list: &Option<String>| {
        let list = list.as_deref().filter(|list| !list.is_empty())?;
        let possible = names_any(list, is_there);
        if !possible {
            tracing::warn!("execCPUAffinity: the guest has none of the processors {list:?}");
        }
        possible.then(|| list.to_owned())
    };
    let (initial, last) = (possible(affinity.initial()), possible(affinity.cpu_affinity_final()));
    let kept = initial.is_some() || last.is_some();
    affinity.set_initial(initial).set_cpu_affinity_final(last);
    process.set_exec_cpu_affinity(kept.then_some(affinity));
}

/// Whether a list like `0-3,7` names one that is there; what is no such list is left to whoever applies it.
fn names_any(list: &str, is_there: &dyn Fn(usize) -> bool) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last => (first..=last.min(MOST)).any(is_there),
            _ => true,
        }
    })
}

/// The highest that a guest can have is far below.
const MOST: usize = 1023;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn processors_that_the_guest_lacks_are_left_out() {
        let kept = |said: serde_json::Value| {
            let process = json!({"cwd": "/", "args": ["a"], "user": {"uid": 0, "gid": 0},
                "execCPUAffinity": said});
            let mut process: Process = serde_json::from_value(process).unwrap();
            keep(&mut process, &|cpu| cpu < 2);
            serde_json::to_value(process.exec_cpu_affinity()).unwrap()
        };
        for same in [
            json!({"initial": "0", "final": "1"}),
            json!({"initial": "7,1"}),
            json!({"final": "1-9999999999"}),
        ] {
            assert_eq!(kept(same.clone()), same);
        }
        assert_eq!(kept(json!({"initial": "0-1", "final": "2-3,7"})), json!({"initial": "0-1"}));
        assert_eq!(kept(json!({"initial": "4", "final": "0"})), json!({"final": "0"}));
        assert_eq!(
            kept(json!({"initial": "4-18446744073709551615", "final": "2000"})),
            json!(null)
        );
        assert!(
            names_any("x", &|_| false) && names_any("3-", &|_| false),
            "refused later, by name"
        );
    }
}
