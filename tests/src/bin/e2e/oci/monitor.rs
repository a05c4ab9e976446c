//! The process that stands for a container: what it holds, and what happens when it does not answer.

use super::container::{Container, WAITS, kata, say};
use crate::bundle::config;
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

crate::cases!(
    crate::Scope::Once;
    descriptors_of_the_caller_stay_the_callers;
    crate::Scope::AllOnce;
    a_stopped_monitor_holds_nobody_up,
    a_stopped_run_in_the_foreground_can_be_deleted,
    poststop_hooks_run_at_the_delete_when_the_monitor_was_killed,
);

/// The caller's number of a descriptor that it leaves open.
const LEFT_OPEN: i32 = 77;

fn descriptors_of_the_caller_stay_the_callers(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    let secret = container.file("secret");
    let file = File::create(&secret)?;
    let mut create = container.create_command()?;
    leave_open(&mut create, file);
    if !create.status()?.success() {
        bail!("create: {}", fs::read_to_string(container.file("out"))?);
    }
    let mut exec = kata(&["exec", "--detach", &container.id, "sleep", "1000"]);
    leave_open(&mut exec, File::open(&secret)?);
    if !exec.stdin(std::process::Stdio::null()).status()?.success() {
        bail!("exec failed");
    }
    let holders = holders(&secret)?;
    if !holders.is_empty() {
        bail!("the caller's file is held open by {holders:?}");
    }
    // What the monitor itself opens is not left to others: of regular files it holds its VMM's uid alone.
    let of_monitor = format!("/proc/{}/fd", container.pid()?);
    for entry in fs::read_dir(of_monitor)? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let expected = [container.file("out"), "/dev/null".into()];
        let of_its_uid = target.starts_with("/run/kata-like-uids");
        if target.is_file() && !expected.contains(&target) && !of_its_uid {
            bail!("the monitor holds {} open", target.display());
        }
    }
    Ok(())
}

/// Has a command inherit a descriptor that it was not told of.
fn leave_open(command: &mut Command, file: File) {
    // SAFETY: dup2 is async-signal-safe; the file is open as long as the closure is.
    unsafe {
        command.pre_exec(move || {
            nix::errno::Errno::result(libc::dup2(file.as_raw_fd(), LEFT_OPEN)).map(drop)?;
            Ok(())
        });
    }
}

/// The command lines of the runtime's processes that have a file open.
fn holders(file: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let program = fs::read_link(process.join("exe")).unwrap_or_default();
        if !program.to_string_lossy().contains("/kata-like") {
            continue;
        }
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        if open.filter_map(|one| fs::read_link(one.path()).ok()).any(|target| target == file) {
            found.push(fs::read_to_string(process.join("cmdline"))?.replace('\0', " "));
        }
    }
    Ok(found)
}

/// What can't be asked is neither stopped nor running: each command says so, within seconds.
fn a_stopped_monitor_holds_nobody_up(context: &Context) -> Result<()> {
    let (stuck, well) = (Container::new(context, WAITS)?, Container::new(context, WAITS)?);
    stuck.run()?;
    well.run()?;
    let monitor = Pid::from_raw(stuck.pid()?);
    kill(monitor, Signal::SIGSTOP)?;
    let silent = format!("process {monitor}, does not answer");
    for (command, more) in [
        ("state", &[][..]),
        ("kill", &["TERM"]),
        ("exec", &["true"]),
        ("ps", &[]),
        ("pause", &[]),
        ("delete", &[]),
    ] {
        stuck.say(command, more)?.expect_error(&[&silent])?;
    }
    let listed = say(&["list", "-f", "json"])?.expect_code(0)?.expect_stderr_of(&silent)?;
    let listed: Value = serde_json::from_str(&listed)?;
    let status = |id: &str| {
        let all = listed.as_array().into_iter().flatten();
        all.clone().find(|one| one["id"] == id).map(|one| one["status"].clone())
    };
    let told = (status(&stuck.id), status(&well.id));
    if told != (Some("unknown".into()), Some("running".into())) {
        bail!("list tells {told:?}");
    }
    kill(monitor, Signal::SIGCONT)?;
    stuck.wait_for_status("running").context("after a plain delete that was refused")?;
    kill(monitor, Signal::SIGSTOP)?;
    stuck.say("delete", &["--force"])?.expect_code(0)?;
    gone(monitor)?;
    stuck.say("state", &[])?.expect_error(&["does not exist"])?;
    well.wait_for_status("running")
}

/// Such a run holds the lock of its container as long as it lives.
fn a_stopped_run_in_the_foreground_can_be_deleted(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    let mut run = kata(&["run", "--pid-file"]);
    run.arg(container.file("pid")).arg("--bundle").arg(&container.bundle.0).arg(&container.id);
    let running = Running::start(&mut run, Vec::new())?;
    command::eventually("it runs", DEADLINE, || {
        Ok(container.file("pid").exists()
            && container.say("state", &[])?.text().contains("running"))
    })?;
    running.signal(Signal::SIGSTOP)?;
    container.say("delete", &["--force"])?.expect_code(0)?;
    running.finish(DEADLINE)?.expect_code(128 + Signal::SIGKILL as i32)?;
    container.say("state", &[])?.expect_error(&["does not exist"]).map(drop)
}

/// As with runc, where there is no such process, they are the delete's; they run once.
fn poststop_hooks_run_at_the_delete_when_the_monitor_was_killed(context: &Context) -> Result<()> {
    for force in [&[][..], &["--force"]] {
        let mut spec = config(&["sh", "-c", WAITS]);
        let container = Container::of(context, &spec)?;
        let log = container.file("hooks.log");
        let script = format!("echo ran >> {}", log.display());
        spec["hooks"]["poststop"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]);
        container.bundle.write_config(&spec)?;
        container.run()?;
        let monitor = Pid::from_raw(container.pid()?);
        kill(monitor, Signal::SIGKILL)?;
        gone(monitor)?;
        container.wait_for_status("stopped")?;
        if log.exists() {
            bail!("a hook ran before the delete");
        }
        container.say("delete", force)?.expect_code(0)?;
        container.say("delete", &["--force"])?.expect_code(0)?;
        let ran = fs::read_to_string(&log).unwrap_or_default();
        if ran != "ran\n" {
            bail!("after the delete {force:?} the hook has written {ran:?}");
        }
    }
    Ok(())
}

/// Waits until a process is gone, or a zombie that nobody waits for.
fn gone(pid: Pid) -> Result<()> {
    command::eventually(&format!("process {pid} is gone"), DEADLINE, || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Ok(stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
    })
}
