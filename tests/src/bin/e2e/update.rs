//! Limits that change while a container runs. `ctr` has no word for that, so the shim is called as containerd does.

use crate::command::{self, DEADLINE, Running};
use crate::context::{Container, Context};
use crate::task_api::shim;
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api::UpdateTaskRequest;
use protobuf::well_known_types::any::Any;

crate::cases!(
    crate::Scope::OneOrEach;
    limits_change_while_it_runs;
    crate::Scope::AllOnce;
    beyond_what_the_machine_has_it_grows_and_gives_back,
    what_the_guest_cannot_be_given_is_named,
    a_container_with_larger_limits_gets_a_larger_machine,
    a_container_without_a_limit_gets_the_processors_that_it_uses,
);

/// Shows the container its cgroup, which `ctr` doesn't by itself.
pub const CGROUP: &str = "--mount=type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid";

pub fn update(context: &Context, container: &Container, resources: &str) -> Result<()> {
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: resources.as_bytes().to_vec(),
        ..Default::default()
    };
    let request = UpdateTaskRequest {
        id: container.id.clone(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    let limit = ttrpc::context::with_timeout(150_000_000_000);
    shim(context, container)?.update(limit, &request)?;
    Ok(())
}

fn limits_change_while_it_runs(context: &Context) -> Result<()> {
    let container = context.container().flag(CGROUP).detached(&["sleep", "1000000"])?;
    let resources = r#"{"memory": {"limit": 50331648}, "cpu": {"quota": 20000, "period": 100000},
        "pids": {"limit": 17}, "blockIO": {"weight": 750}}"#;
    update(context, &container, resources)?;
    let show = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); \
        cat memory.max pids.max cpu.max io.weight";
    let told = container.exec(&["sh", "-c", show])?.expect_code(0)?.text();
    let expected = "50331648\n17\n20000 100000\ndefault 7475";
    if told != expected {
        bail!("inside the limits are {told:?}");
    }
    update(context, &container, r#"{"pids": {"limit": 23}}"#)?;
    let told = container.exec(&["sh", "-c", show])?.expect_code(0)?.text();
    if told != expected.replace("17", "23") {
        bail!("after a change of one limit they are {told:?}");
    }
    container.remove()
}

fn what_the_guest_cannot_be_given_is_named(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    for (resources, name) in [
        (r#"{"cpu": {"cpus": "0-100000"}}"#, "cpuset.cpus: 0-100000"),
        (r#"{"network": {"classID": 7}}"#, "/network"),
        (r#"{"blockIO": {"leafWeight": 10}}"#, "/blockIO/leafWeight"),
        (r#"{"blockIO": {"weight": 9}}"#, "blockIO.weight 9"),
        (
            r#"{"memory": {"limit": 1024, "checkBeforeUpdate": true}}"#,
            "rejecting memory limit 1024",
        ),
        ("7", "linux.resources"),
    ] {
        match update(context, &container, resources) {
            Ok(()) => bail!("{resources} was taken"),
            Err(error) if !format!("{error:#}").contains(name) => {
                return Err(error.context(format!("does not name {name}")));
            }
            Err(_) => {}
        }
    }
    container.remove()
}

/// CPUs, and MiB of memory, that the guest of a container has.
fn machine(container: &Container) -> Result<(usize, u64)> {
    let show = ["cat", "/proc/meminfo", "/proc/cpuinfo"];
    let text = container.exec(&show)?.expect_code(0)?.text();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok((text.matches("processor\t").count(), kib.context("no MemTotal")? / 1024))
}

/// The machine has one vCPU and 128 MiB at first; the host has two CPUs or more.
fn beyond_what_the_machine_has_it_grows_and_gives_back(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let at_first = machine(&container)?;
    if at_first.0 != 1 || at_first.1 > 128 {
        bail!("at first the guest has {at_first:?}");
    }
    let limits = r#"{"memory": {"limit": 419430400}, "cpu": {"quota": 200000, "period": 100000}}"#;
    // Files and streams are in use while devices stop and go on.
    let copying = "while [ ! -e /stop ]; do \
        dd if=/bin/busybox of=/copy bs=64k 2>/dev/null; md5sum /copy; done";
    let mut copying = container.exec_command(&[], &["sh", "-c", copying]);
    let copying = Running::start(&mut copying, Vec::new())?;
    container.await_file("/copy")?;
    update(context, &container, limits)?;
    let grown = machine(&container)?;
    if grown != (2, at_first.1 + 384) {
        bail!("beyond that the guest has {grown:?}, and at first it had {at_first:?}");
    }
    // Two buffers of its own memory, filled on both CPUs and held: what is freed may be gone from the host
    // before anybody looks.
    let hold =
        "dd if=/dev/zero bs=150M count=1 2>/dev/null | while [ ! -e /full ]; do sleep 0.1; done";
    let hold = format!("{hold} & {hold}; wait");
    let holding =
        Running::start(&mut container.exec_command(&[], &["sh", "-c", &hold]), Vec::new())?;
    let mut held = 0;
    command::eventually("the host holds 300 MiB for the guest", DEADLINE, || {
        held = crate::memory::held()?;
        Ok(held >= 300)
    })?;
    container.exec(&["touch", "/full"])?.expect_code(0)?;
    holding.finish(DEADLINE)?.expect_code(0)?;
    update(context, &container, r#"{"memory": {"limit": 50331648}, "cpu": {"quota": 50000}}"#)?;
    let after = machine(&container)?;
    let left = crate::memory::held()?;
    if after != at_first || left > held - 200 {
        bail!("afterwards the guest has {after:?}, and the host holds {left} MiB of {held}");
    }
    update(context, &container, limits)?;
    container.exec(&["touch", "/stop"])?.expect_code(0)?;
    let copies = copying.finish(DEADLINE)?.expect_code(0)?.text();
    let first = copies.lines().next();
    if copies.lines().count() < 2 || copies.lines().any(|line| Some(line) != first) {
        bail!("copies that were made meanwhile differ: {copies}");
    }
    let again = machine(&container)?;
    if again != grown {
        bail!("the second time the guest has {again:?}");
    }
    container.remove()
}

fn a_container_with_larger_limits_gets_a_larger_machine(context: &Context) -> Result<()> {
    let run = context.container().flag("--memory-limit").flag("209715200");
    let container = run.flag("--cpus").flag("1.5").detached(&["sleep", "1000000"])?;
    let (cpus, mib) = machine(&container)?;
    if cpus != 2 || mib < 300 {
        bail!("the guest has {cpus} CPUs and {mib} MiB");
    }
    let fill = ["dd", "if=/dev/zero", "of=/dev/null", "bs=180M", "count=1"];
    container.exec(&fill)?.expect_code(0)?;
    container.remove()
}

/// The host has two CPUs or more.
fn a_container_without_a_limit_gets_the_processors_that_it_uses(context: &Context) -> Result<()> {
    let busy = "for i in 1 2; do while :; do :; done & done; wait";
    let run = context.container().flag("--cpus").flag("0.5");
    let limited = run.detached(&["sh", "-c", busy])?;
    let when_told = format!("until [ -e /go ]; do sleep 0.2; done; {busy}");
    let container = context.container().detached(&["sh", "-c", &when_told])?;
    let none_used = machine(&container)?.0;
    container.exec(&["touch", "/go"])?.expect_code(0)?;
    let mut cpus = 0;
    command::eventually("two processes have a processor each", DEADLINE, || {
        cpus = machine(&container)?.0;
        Ok(cpus > 1)
    })?;
    let of_limited = machine(&limited)?.0;
    if (none_used, of_limited) != (1, 1) {
        bail!("idle it has {none_used} CPUs, and one with a limit that is busy {of_limited}");
    }
    limited.remove()?;
    container.remove()
}
