//! What a pod may take of the host, and how late it is ended when that is short.

use super::pod::{Member, OURS, Pod};
use crate::command::{self, DEADLINE};
use crate::confinement::pid_of;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;

crate::cases!(
    crate::Scope::Once;
    all_of_a_pod_stays_below_its_limit_and_one_container_comes_near_its_own;
    crate::Scope::AllOnce;
    the_container_that_matters_most_says_how_late_a_pod_is_ended,
    so_does_a_pod_whose_limit_is_small,
);

const MIB: u64 = 1 << 20;

/// What kubelet would give a pod for its containers, and beside that for its machine (deploy/runtimeclass.yaml).
const LIMIT: u64 = 130 * MIB;
const OVERHEAD: u64 = 128 * MIB;

/// What of the host's memory a machine takes beside that of its guest.
const COST: u64 = 24 * MIB;

/// What the guest has beside what is for containers.
const GUEST: u64 = 64 * MIB;

fn resources(memory: u64, oom_score_adj: i32) -> Value {
    json!({"linux": {"resources": {"memory_limit_in_bytes": memory, "oom_score_adj": oom_score_adj}}})
}

/// Holds so much memory for a moment.
fn hold(container: &Member<'_>, mib: u64) -> Result<()> {
    container.sh(&format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>&1")).map(drop)
}

fn all_of_a_pod_stays_below_its_limit_and_one_container_comes_near_its_own(
    context: &Context,
) -> Result<()> {
    let size = json!({"linux": {"resources": {"memory_limit_in_bytes": LIMIT}}});
    let pod = Pod::run_limited(context, OURS, &size, Some(LIMIT + OVERHEAD))?;
    // Together more than the pod may have.
    let each = resources(96 * MIB, 0);
    let (first, second) =
        (pod.start(&["sleep", "1000000"], &each)?, pod.start(&["sleep", "1000000"], &each)?);
    let total = bytes(&first, "MemTotal")?;
    ensure!(total <= LIMIT + GUEST, "the guest has {total} bytes");
    for container in [&first, &second] {
        hold(container, 91)?;
    }
    // Both at once, and files: what is cached of them is memory of the guest, too.
    let churn = "dd if=/dev/zero of=/dev/null bs=60M count=1 2>&1
        dd if=/dev/zero of=/file bs=1M count=80 2>&1; cat /file > /dev/null; rm /file";
    std::thread::scope(|scope| {
        let both = [&first, &second].map(|container| scope.spawn(|| container.sh(churn)));
        both.into_iter().try_for_each(|one| one.join().expect("no panic").map(drop))
    })?;
    let third = pod.start(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"], &{
        resources(32 * MIB, 0)
    })?;
    let code = third.ended()?;
    let reason = third.status()?["reason"].take();
    ensure!(code == 137 && reason == "OOMKilled", "{code}, {reason}");
    for container in [&first, &second] {
        ensure!(container.status()?["state"] == "CONTAINER_RUNNING");
    }
    ensure_none_killed(&pod)?;
    pod.remove()
}

/// Of our processes, by the host.
fn ensure_none_killed(pod: &Pod) -> Result<()> {
    let events = fs::read_to_string(pod.cgroup().join("memory.events"))?;
    ensure!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
    Ok(())
}

/// Of the guest's memory.
fn bytes(container: &Member<'_>, name: &str) -> Result<u64> {
    let said = container.sh(&format!("awk '/^{name}:/ {{print $2}}' /proc/meminfo"))?;
    Ok(said.parse::<u64>()? * 1024)
}

/// All that a machine starts with, of the one sandbox that there is: what the VMM has mapped of the guest's memory from its
/// begin on.
fn guest_memory() -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", pid_of("kata-like-vmm")?))?;
    let begin = |line: &&str| line.contains("guest-memory") && line.contains(" 00000000 ");
    let line = maps.lines().find(begin).context("no guest memory")?;
    let (from, to) =
        line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
    Ok(u64::from_str_radix(to, 16)? - u64::from_str_radix(from, 16)?)
}

/// Less than a machine has by default, with what it costs: it is the pod's that is limited, so its containers' files fill
/// the guest.
fn so_does_a_pod_whose_limit_is_small(context: &Context) -> Result<()> {
    let limit = 10 * MIB;
    let size = json!({"linux": {"resources": {"memory_limit_in_bytes": limit}}});
    let pod = Pod::run_limited(context, OURS, &size, Some(limit + OVERHEAD))?;
    let container = pod.sleeper()?;
    let total = bytes(&container, "MemTotal")?;
    let machine = guest_memory()?;
    ensure!(
        total <= machine && machine + COST <= limit + OVERHEAD,
        "the machine has {machine} bytes"
    );
    let files = "for i in 1 2; do dd if=/dev/zero of=/$i bs=1M count=100; sync; cat /$i; done";
    container.sh(&format!("({files}) > /dev/null 2>&1"))?;
    let free = bytes(&container, "MemFree")?;
    ensure!(free < total / 2, "the guest's files did not fill it: {free} bytes of {total}");
    ensure!(container.status()?["state"] == "CONTAINER_RUNNING");
    ensure_none_killed(&pod)?;
    pod.remove()
}

fn the_container_that_matters_most_says_how_late_a_pod_is_ended(context: &Context) -> Result<()> {
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let helpers = [pid_of("kata-like-vmm")?, pid_of("kata-like-fs")?];
    let of = |pid: u32| -> Result<i32> {
        Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?)
    };
    let scores = |expected: i32| {
        command::eventually(&format!("the scores are {expected}"), DEADLINE, || {
            let [vmm, file_server] = helpers.map(of);
            Ok(vmm? == expected && file_server? == expected)
        })
    };
    // That of the pause container is below 0.
    ensure!(of(helpers[0])? >= 0, "{}", of(helpers[0])?);
    let burstable = pod.start(&["sleep", "1000000"], &resources(0, 940))?;
    scores(940)?;
    let other = pod.start(&["sleep", "1000000"], &resources(0, 500))?;
    ensure!(other.sh("cat /proc/1/oom_score_adj")? != "0");
    scores(500)?;
    other.remove()?;
    scores(940)?;
    burstable.remove()?;
    pod.remove()
}
