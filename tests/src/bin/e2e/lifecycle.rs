//! Signals, detached containers, deletion, several at once and one after another.

use crate::command::{self, DEADLINE};
use crate::context::{Container, Context};
use crate::{crash, leaks};
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

crate::cases!(
    crate::Scope::OneOrEach;
    sigterm_reaches_the_process,
    kill_all_ends_every_process,
    delete_of_a_running_task_is_refused,
    a_second_delete_is_not_found,
    a_caller_that_goes_away_leaves_nothing,
    many_eight_at_a_time_leave_containerd_as_it_was;
    crate::Scope::Once;
    signals_to_ctr_run_are_passed_on,
    two_at_once_are_apart,
    a_living_shim_keeps_no_descriptors;
    crate::Scope::AllOnce;
    sigkill_ends_it_with_137,
    a_detached_container_runs_on,
    twenty_one_after_another,
);

/// Says when its trap is set: by a file, and on its standard output.
const TRAP: &str = "trap 'echo terminated; exit 3' TERM; touch /ready; echo ready; \
    while :; do sleep 0.1; done";

/// The exit status that a stopped task is deleted with.
pub fn expect_status(container: &Container, status: i32) -> Result<()> {
    match container.exit_status()? {
        told if told == status => Ok(()),
        told => bail!("exit status {told} instead of {status}"),
    }
}

fn sigterm_reaches_the_process(context: &Context) -> Result<()> {
    let container = context.container().detached(&["sh", "-c", TRAP])?;
    container.await_file("/ready")?;
    container.kill("TERM")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    expect_status(&container, 3)?;
    Ok(())
}

fn sigkill_ends_it_with_137(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    expect_status(&container, 137)?;
    Ok(())
}

fn signals_to_ctr_run_are_passed_on(context: &Context) -> Result<()> {
    let run = context.container();
    let id = run.id().to_owned();
    let running = run.start(&["sh", "-c", TRAP])?;
    command::eventually("the shell is ready", DEADLINE, || {
        let exec = ["task", "exec", "--exec-id", "look", &id, "test", "-e", "/ready"];
        Ok(context.ctr(&exec)?.code == 0)
    })?;
    running.signal(Signal::SIGTERM)?;
    let said = running.finish(DEADLINE)?.expect_code(3)?.text();
    if said != "ready\nterminated" {
        bail!("the container said {said:?}");
    }
    Ok(())
}

fn a_detached_container_runs_on(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    if container.status()?.as_deref() != Some("RUNNING") {
        bail!("its status is {:?}", container.status()?);
    }
    container.exec(&["true"])?.expect_code(0)?;
    container.remove()
}

fn kill_all_ends_every_process(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let script = "sleep 1000 & touch /ready; sleep 2000";
    let mut exec = container.exec_command(&[], &["sh", "-c", script]);
    let running = command::Running::start(&mut exec, Vec::new())?;
    container.await_file("/ready")?;
    container.task(&["kill", "--all", "-s", "KILL"], &[])?.expect_code(0)?;
    container.await_status("STOPPED")?;
    let code = running.finish(DEADLINE)?.code;
    if code != 137 {
        bail!("the exec ended with {code}");
    }
    expect_status(&container, 137)?;
    Ok(())
}

fn delete_of_a_running_task_is_refused(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.delete_task()?.expect_error(&["failed precondition"])?;
    if container.status()?.as_deref() != Some("RUNNING") {
        bail!("after a refused delete its status is {:?}", container.status()?);
    }
    container.exec(&["true"])?.expect_code(0)?;
    container.remove()
}

fn a_second_delete_is_not_found(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    expect_status(&container, 137)?;
    container.delete_task()?.expect_error(&["not found"])?;
    Ok(())
}

fn two_at_once_are_apart(context: &Context) -> Result<()> {
    let (one, two) = (context.sleeper()?, context.sleeper()?);
    one.exec(&["sh", "-c", "echo one > /root/mine"])?.expect_code(0)?;
    let seen = two.exec(&["sh", "-c", "cat /root/mine"])?.text();
    if seen.contains("one") {
        bail!("the second container sees {seen:?}");
    }
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let (a, b) = (one.exec(&["cat", boot_id])?.text(), two.exec(&["cat", boot_id])?.text());
    if a == b || a.len() != 36 {
        bail!("boot ids {a:?} and {b:?}: not two machines");
    }
    one.remove()?;
    two.exec(&["true"])?.expect_code(0)?;
    two.remove()
}

/// `ctr` is killed at different moments of a create; what has come to be can be removed, and the rest is gone.
fn a_caller_that_goes_away_leaves_nothing(context: &Context) -> Result<()> {
    for delay in [100, 300, 500, 700, 1000, 1500] {
        let run = context.container();
        let id = run.id().to_owned();
        let running = run.start(&["sleep", "100000"])?;
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::SIGKILL)?;
        running.finish(DEADLINE)?;
        // containerd goes on with what it was asked for, or undoes it.
        command::eventually(&format!("{id} can be removed"), DEADLINE, || {
            context.ctr(&["task", "delete", "--force", &id])?;
            context.ctr(&["container", "delete", &id])?;
            let left = context.ctr(&["container", "ls", "-q"])?.expect_code(0)?.text();
            Ok(!left.lines().any(|line| line == id))
        })?;
        context.ctr(&["snapshot", "rm", &id])?; // ctr would have removed it
    }
    // A server that containerd has started and not asked for anything ends by itself.
    command::eventually("no shim is left", DEADLINE, || Ok(leaks::our_processes()?.is_empty()))?;
    crash::remove_fifos_of_ctr()?;
    context.container().output(&["true"])?.expect_code(0).map(drop)
}

fn twenty_one_after_another(context: &Context) -> Result<()> {
    for round in 0..20 {
        let said = context.container().output(&["echo", &round.to_string()])?.expect_code(0)?;
        if said.text() != round.to_string() {
            bail!("round {round} said {:?}", said.text());
        }
    }
    Ok(())
}

/// Twenty execs leave a shim, its VMM and its file server with the descriptors that they had.
fn a_living_shim_keeps_no_descriptors(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    // The file server keeps a descriptor for each file that the guest knows: let it know `cat`.
    container.exec_with_stdin("x", &["cat"])?.expect_code(0)?;
    let before = leaks::descriptors_of_ours()?;
    for _ in 0..20 {
        container.exec_with_stdin("x", &["cat"])?.expect_code(0)?;
    }
    let mut after = Vec::new();
    command::eventually("descriptors are as before", command::DEADLINE, || {
        after = leaks::descriptors_of_ours()?;
        Ok(after == before)
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))?;
    container.remove()
}

/// As many as `--many` says, each run, entered and removed.
fn many_eight_at_a_time_leave_containerd_as_it_was(context: &Context) -> Result<()> {
    const AT_ONCE: usize = 8;
    // What containerd itself keeps for good it has after the first.
    one_life(context)?;
    let containerd: u32 = fs::read_to_string(context.containerd.pid_file())?.trim().parse()?;
    let before = (leaks::descriptors(containerd)?, resident_kib(containerd)?);
    let next = AtomicU32::new(0);
    let worker = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < context.many {
            one_life(context)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(_) => bail!("a worker panicked"),
        })
    })?;
    let mut after = before;
    command::eventually("containerd's descriptors are as before", DEADLINE, || {
        after = (leaks::descriptors(containerd)?, resident_kib(containerd)?);
        Ok(after.0 <= before.0)
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))?;
    if after.1 > before.1 + MORE_KIB {
        bail!("containerd had {} KiB resident and has {}", before.1, after.1);
    }
    Ok(())
}

/// Memory that containerd's garbage collector may leave for later.
const MORE_KIB: u64 = 64 << 10;

fn one_life(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let said = container.exec(&["echo", &container.id])?.expect_code(0)?.text();
    if said != container.id {
        bail!("{} said {said:?}", container.id);
    }
    container.remove()
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
