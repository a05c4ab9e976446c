//! A container that stands still, and what it uses.

use crate::command::{self, DEADLINE, Running};
use crate::context::{Container, Context};
use crate::lifecycle::expect_status;
use crate::task_api;
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::sandbox_api::{PingRequest, SandboxMetricsRequest};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use nix::sys::signal::Signal;
use protobuf::Message as _;
use std::time::Duration;

crate::cases!(
    crate::Scope::OneOrEach;
    a_paused_container_stands_still_and_goes_on,
    memory_that_runs_out_is_told,
    metrics_are_the_guests;
    crate::Scope::AllEach;
    pause_and_resume_are_told_once_and_in_order;
    crate::Scope::AllOnce;
    a_paused_container_is_killed,
    the_sandbox_is_counted_apart,
);

/// How far the container has counted.
fn count(path: &str) -> Result<u64> {
    Ok(std::fs::read_to_string(path)?.trim().parse().unwrap_or_default())
}

fn a_paused_container_stands_still_and_goes_on(context: &Context) -> Result<()> {
    let directory = format!("/tmp/{}", context.fresh_id());
    std::fs::create_dir(&directory)?;
    let file = format!("{directory}/count");
    let mount = format!("--mount=type=bind,src={directory},dst=/out,options=rbind:rw");
    let script =
        "i=0; while :; do i=$((i+1)); echo $i > /out/new; mv /out/new /out/count; sleep 0.05; done";
    let container = context.container().flag(mount).detached(&["sh", "-c", script])?;
    let counts_on = |than: u64| {
        command::eventually("the container counts", DEADLINE, || {
            Ok(count(&file).unwrap_or_default() > than)
        })
    };
    counts_on(1)?;
    container.task(&["resume"], &[])?.expect_error(&["not paused"])?;
    container.task(&["pause"], &[])?.expect_code(0)?;
    if container.status()?.as_deref() != Some("PAUSED") {
        bail!("after a pause its status is {:?}", container.status()?);
    }
    let stood_at = count(&file)?;
    container.exec(&["true"])?.expect_error(&["is paused"])?;
    container.task(&["pause"], &[])?.expect_error(&["paused already"])?;
    std::thread::sleep(Duration::from_secs(1));
    if count(&file)? != stood_at {
        bail!("a paused container has counted from {stood_at} to {}", count(&file)?);
    }
    container.task(&["resume"], &[])?.expect_code(0)?;
    container.await_status("RUNNING")?;
    counts_on(stood_at)?;
    container.exec(&["true"])?.expect_code(0)?;
    container.remove()?;
    Ok(std::fs::remove_dir_all(&directory)?)
}

fn a_paused_container_is_killed(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.task(&["pause"], &[])?.expect_code(0)?;
    container.delete_task()?.expect_error(&[&container.id])?;
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    expect_status(&container, 137)
}

/// The topics that are told of a container that `life` makes and whose id it gives.
fn told(context: &Context, life: impl FnOnce() -> Result<String>) -> Result<Vec<String>> {
    let events = Running::start(&mut context.ctr_command(&["events"]), Vec::new())?;
    std::thread::sleep(Duration::from_secs(1)); // until it listens
    let id = life()?;
    std::thread::sleep(Duration::from_secs(5)); // until the last has come
    events.signal(Signal::SIGTERM)?;
    let told = events.finish(DEADLINE)?.text();
    let topic = |line: &str| {
        let topic = line.split_whitespace().find(|word| word.starts_with("/tasks/"));
        topic.map(str::to_owned)
    };
    Ok(told.lines().filter(|line| line.contains(&id)).filter_map(topic).collect())
}

fn expect_topics(told: &[String], expected: &[&str]) -> Result<()> {
    let told: Vec<&str> = told.iter().filter_map(|topic| topic.strip_prefix("/tasks/")).collect();
    if told != expected {
        bail!("told: {told:?}");
    }
    Ok(())
}

fn pause_and_resume_are_told_once_and_in_order(context: &Context) -> Result<()> {
    let told = told(context, || {
        let container = context.sleeper()?;
        let id = container.id.clone();
        container.task(&["pause"], &[])?.expect_code(0)?;
        container.task(&["resume"], &[])?.expect_code(0)?;
        container.remove()?;
        Ok(id)
    })?;
    expect_topics(&told, &["create", "start", "paused", "resumed", "exit", "delete"])
}

fn memory_that_runs_out_is_told(context: &Context) -> Result<()> {
    let told = told(context, || {
        let limit = 32 << 20;
        let container = context.container().flag(format!("--memory-limit={limit}"));
        let container = container.detached(&["tail", "-c", "60000000", "/dev/zero"])?;
        container.await_status("STOPPED")?;
        // What it used is told until it is deleted.
        if metric(&container, "memory.usage_limit")? != limit {
            bail!("after its end the memory's limit is not told");
        }
        let id = container.id.clone();
        expect_status(&container, 137)?;
        Ok(id)
    })?;
    expect_topics(&told, &["create", "start", "oom", "exit", "delete"])
}

/// What `ctr task metrics` prints in the row of that name.
fn metric(container: &Container, name: &str) -> Result<u64> {
    let table = container.task(&["metrics"], &[])?.expect_code(0)?.text();
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    let value = row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok());
    value.with_context(|| format!("no number called {name} in: {table}"))
}

fn metrics_are_the_guests(context: &Context) -> Result<()> {
    let limit = 64 << 20;
    let container = context.container().flag(format!("--memory-limit={limit}")).detached(&[
        "sh",
        "-c",
        "sleep 100000 & sleep 100000 & wait",
    ])?;
    // Its shell may still be about to start them.
    command::eventually("three processes", DEADLINE, || {
        Ok(metric(&container, "pids.current")? == 3)
    })?;
    let before = metric(&container, "cpu.usage_usec")?;
    if metric(&container, "memory.usage_limit")? != limit {
        bail!("the memory's limit is not told");
    }
    let used = metric(&container, "memory.usage")?;
    if !(100_000..limit).contains(&used) {
        bail!("{used} bytes used");
    }
    let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    container.exec(&["sh", "-c", busy])?.expect_code(0)?;
    let after = metric(&container, "cpu.usage_usec")?;
    if after < before + 10_000 {
        bail!("20000 rounds took {before} to {after} µs");
    }
    container.remove()
}

/// What `ctr` doesn't ask for: the figures of the sandbox's own processes.
fn the_sandbox_is_counted_apart(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let shim = SandboxClient::new(task_api::connect(context, &container)?);
    let limit = || ttrpc::context::with_timeout(20_000_000_000);
    let ask = |id: &str| {
        shim.sandbox_metrics(
            limit(),
            &SandboxMetricsRequest { sandbox_id: id.into(), ..Default::default() },
        )
    };
    let used = || {
        let metrics = ask(&container.id)?.metrics.unwrap_or_default();
        Ok::<_, anyhow::Error>(Metrics::parse_from_bytes(&metrics.data.value)?)
    };
    let before = used()?;
    let (own, guest) = (before.memory.anon, before.memory.shmem);
    if !(4 << 20..64 << 20).contains(&own) || !(16 << 20..256 << 20).contains(&guest) {
        bail!("{own} bytes of its own, {guest} of the guest's");
    }
    if before.memory.usage != own + guest || before.pids.current != 3 {
        bail!("{before:?}");
    }
    let filled =
        container.exec(&["dd", "if=/dev/zero", "of=/dev/shm/file", "bs=1M", "count=32"])?;
    filled.expect_code(0)?;
    let after = used()?;
    if after.memory.shmem < guest + (24 << 20) {
        bail!("32 MiB were written: {guest}, then {} bytes of the guest's", after.memory.shmem);
    }
    if after.cpu.usage_usec < before.cpu.usage_usec + 10_000 {
        bail!("{} µs, then {}", before.cpu.usage_usec, after.cpu.usage_usec);
    }
    for (outcome, words) in [
        (ask("another").map(drop), "sandbox another not found"),
        (shim.ping_sandbox(limit(), &PingRequest::default()).map(drop), "sandbox  not found"),
    ] {
        match outcome {
            Err(error) if error.to_string().contains(words) => {}
            other => bail!("instead of {words:?}: {other:?}"),
        }
    }
    container.remove()
}
