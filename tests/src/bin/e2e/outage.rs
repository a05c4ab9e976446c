//! containerd goes away under a running container, and comes back.

use crate::command::{self, DEADLINE};
use crate::context::Context;
use crate::crash;
use crate::leaks;
use crate::lifecycle::expect_status;
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;

crate::cases!(
    crate::Scope::OneOrEach;
    a_task_outlives_containerd,
    an_exit_during_the_outage_is_reported;
    crate::Scope::AllEach;
    what_containerd_gives_up_at_its_start_is_ended,
);

/// Kills containerd.
pub fn stop_containerd(context: &Context) -> Result<()> {
    let pid = fs::read_to_string(context.containerd.pid_file())?.trim().parse()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    command::eventually("containerd is gone", DEADLINE, || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Ok(!Path::new(&format!("/proc/{pid}")).exists() || state.contains(") Z "))
    })
}

fn a_task_outlives_containerd(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    stop_containerd(context)?;
    context.containerd.start()?;
    if container.status()?.as_deref() != Some("RUNNING") {
        bail!("after the restart its status is {:?}", container.status()?);
    }
    let said = container.exec(&["echo", "still here"])?.expect_code(0)?.text();
    if said != "still here" {
        bail!("exec said {said:?}");
    }
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    expect_status(&container, 137)?;
    Ok(())
}

/// Starts containerd while no server of ours answers: it waits for seconds, and forgets what they have.
pub fn give_up(context: &Context) -> Result<()> {
    let servers: Vec<_> = leaks::our_processes()?
        .into_iter()
        .filter(|(_, line)| line.contains("containerd-shim-kata-like-v2"))
        .map(|(pid, _)| Pid::from_raw(pid.cast_signed()))
        .collect();
    stop_containerd(context)?;
    servers.iter().try_for_each(|pid| kill(*pid, Signal::SIGSTOP))?;
    let started = context.containerd.start();
    servers.iter().try_for_each(|pid| kill(*pid, Signal::SIGCONT))?;
    started?;
    command::eventually("no process is left", DEADLINE, || Ok(leaks::our_processes()?.is_empty()))
}

fn what_containerd_gives_up_at_its_start_is_ended(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    give_up(context)?;
    if let Some(status) = container.status()? {
        bail!("containerd says that it is {status}");
    }
    drop(container);
    crash::remove_fifos_of_ctr()
}

fn an_exit_during_the_outage_is_reported(context: &Context) -> Result<()> {
    let flag = format!("/tmp/{}", context.fresh_id());
    fs::create_dir(&flag)?;
    let mount = format!("--mount=type=bind,src={flag},dst=/flag,options=rbind:rw");
    let script = "until [ -e /flag/go ]; do sleep 0.1; done; exit 6";
    let container = context.container().flag(mount).detached(&["sh", "-c", script])?;
    stop_containerd(context)?;
    fs::write(format!("{flag}/go"), "")?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mark = usize::try_from(fs::metadata(context.containerd.log())?.len())?;
    context.containerd.start()?;
    command::eventually("the exit is told to containerd", DEADLINE, || {
        let log = fs::read(context.containerd.log())?;
        Ok(String::from_utf8_lossy(&log[mark..]).contains("/tasks/exit"))
    })?;
    command::eventually("the task is stopped or gone", DEADLINE, || {
        Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
    })?;
    if container.status()?.is_some() {
        expect_status(&container, 6)?;
    } else {
        // A starting containerd removes a shim whose task has no processes, and says so.
        let log = fs::read(context.containerd.log())?;
        let log = String::from_utf8_lossy(&log[mark..]).into_owned();
        let said =
            |line: &str| line.contains("cleaning leaked shim") && line.contains(&container.id);
        if !log.lines().any(said) {
            bail!("the task is gone, and containerd's log does not say that it removed it");
        }
        crash::remove_fifos_of_ctr()?;
    }
    drop(container);
    Ok(fs::remove_dir_all(&flag)?)
}
