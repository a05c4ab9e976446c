//! The shim as containerd calls it: `-v`, `-info`, and the methods that are not there yet.

use crate::bundle::Bundle;
use crate::command::{self, DEADLINE};
use crate::confinement::pid_of;
use crate::containerd_api as api;
use crate::context::Context;
use crate::{crash, leaks};
use anyhow::{Result, bail};
use lab::containerd::IMAGE;
use nix::fcntl::FcntlArg;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

crate::cases!(
    crate::Scope::OneOrEach;
    unsupported_methods_are_unimplemented_by_name,
    it_describes_itself;
    crate::Scope::Once;
    an_id_is_used_again_at_once,
    a_start_that_is_killed_leaves_no_server;
    crate::Scope::AllOnce;
    it_says_its_version,
    asked_to_end_it_leaves_nothing,
    when_memory_is_short_containerd_is_the_last_to_go,
);

const SHIM: &str = "containerd-shim-kata-like-v2";

/// `ctr` has a command for none of them but this; a unit test of the shim calls the others. What kind of error it is
/// only containerd's own answer says for every version: `ctr` of containerd 2 prints the text alone.
fn unsupported_methods_are_unimplemented_by_name(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.task(&["checkpoint"], &[])?.expect_error(&["kata-like has no checkpoint"])?;
    let refused = api::checkpoint(context.containerd, &container.id);
    let code = refused.as_ref().err().and_then(|error| error.downcast_ref::<api::Refused>());
    if code.is_none_or(|refused| refused.code != api::UNIMPLEMENTED) {
        bail!("a checkpoint was answered with {refused:?}");
    }
    container.remove()
}

/// SIGTERM, as at the host's shutdown.
fn asked_to_end_it_leaves_nothing(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let shim = pid_of(SHIM)?;
    kill(Pid::from_raw(shim.cast_signed()), Signal::SIGTERM)?;
    command::eventually("the shim's processes are gone", DEADLINE, || {
        Ok(leaks::our_processes()?.is_empty())
    })?;
    command::eventually("the task is gone or stopped", DEADLINE, || {
        Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
    })?;
    drop(container);
    crash::remove_fifos_of_ctr()
}

/// As containerd kills it when its own caller goes away. It is held up at its answer: the pipe is full.
fn a_start_that_is_killed_leaves_no_server(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["true"])?;
    nix::unistd::mkfifo(&bundle.0.join("log"), Mode::S_IRUSR | Mode::S_IWUSR)?;
    let (_reader, mut writer) = std::io::pipe()?;
    writer.write_all(&vec![0; nix::fcntl::fcntl(&writer, FcntlArg::F_GETPIPE_SZ)?.try_into()?])?;
    let address = context.containerd.address();
    let mut start = Command::new(SHIM)
        .args(["-namespace", "default", "-id", &context.fresh_id(), "-address", &address, "start"])
        .env("TTRPC_ADDRESS", format!("{address}.ttrpc"))
        .current_dir(&bundle.0)
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()?;
    let machine_runs = || Ok(pid_of("kata-like-vmm").is_ok());
    let started = command::eventually("the server has a machine", DEADLINE, machine_runs);
    start.kill()?;
    start.wait()?;
    started?;
    command::eventually("the server is gone", DEADLINE, || Ok(leaks::our_processes()?.is_empty()))
}

/// As Docker does at a restart; the last server may not have ended yet.
fn an_id_is_used_again_at_once(context: &Context) -> Result<()> {
    let id = context.fresh_id();
    for round in 0..4 {
        let said = round.to_string();
        let run = ["run", "--rm", "--runtime", &context.runtime, IMAGE, &id, "echo", &said];
        let output = context.ctr(&run)?.expect_code(0)?.text();
        if output.trim() != said {
            bail!("round {round} said {output:?}");
        }
    }
    Ok(())
}

fn when_memory_is_short_containerd_is_the_last_to_go(context: &Context) -> Result<()> {
    let scores = |pid: u32| format!("/proc/{pid}/oom_score_adj");
    let score =
        |pid: u32| Ok::<i32, anyhow::Error>(fs::read_to_string(scores(pid))?.trim().parse()?);
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let pids = fs::read_dir("/proc")?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let before: Vec<(u32, i32)> = pids
        .filter(|&pid| name(pid).trim() == "containerd")
        .map(|pid| Ok((pid, score(pid)?)))
        .collect::<Result<_>>()?;
    // As distributions protect it.
    before.iter().try_for_each(|&(pid, _)| fs::write(scores(pid), "-999"))?;
    let container = context.sleeper();
    before.iter().try_for_each(|&(pid, score)| fs::write(scores(pid), score.to_string()))?;
    let container = container?;
    for (program, expected) in [(SHIM, -998), ("kata-like-vmm", 0), ("kata-like-fs", 0)] {
        let score = score(pid_of(program)?)?;
        if score != expected {
            bail!("{program} has {score}, not {expected}");
        }
    }
    container.remove()
}

fn it_says_its_version(_: &Context) -> Result<()> {
    let said = command::output(Command::new(SHIM).arg("-v"))?.expect_code(0)?.text();
    if !said.contains(SHIM) || !said.contains("0.1.0") {
        bail!("it said {said:?}");
    }
    Ok(())
}

fn it_describes_itself(_: &Context) -> Result<()> {
    let info = command::output(Command::new(SHIM).arg("-info"))?.expect_code(0)?.stdout;
    if !String::from_utf8_lossy(&info).contains("io.containerd.kata-like.v2") {
        bail!("its RuntimeInfo has no name in {} bytes", info.len());
    }
    Ok(())
}
