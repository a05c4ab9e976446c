//! `exec`: one more process in a running container.
//!
//! This process carries its standard streams over pipes to the monitor. Detached, it is a process in the
//! background that does so, lives as long as the new process, and ends with its status.

use crate::Globals;
use crate::background::{self, Reporter};
use crate::monitor::call::{self, Answer, Call};
use crate::monitor::{check_console, console};
use crate::record::{Home, Record};
use crate::run::signals::{Action, Signals};
use crate::run::terminal::{self, RawTerminal};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use sandbox::event::Exit;
use sandbox::vm::Control;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Run a process in a running container
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Arguments {
    /// Return as soon as it runs
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Unix socket that receives the master of its terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for the pid of the process that stands for it
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// File with the `process` object of the OCI runtime-spec, in place of command and options
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User, and group, by number
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, Option<u32>)>,
    /// Add a group
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Let it gain no privileges by executing programs
    #[arg(long)]
    no_new_privs: bool,
    /// Refused: AppArmor is the host's
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Refused: SELinux is the host's
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Refused unless 0: a descriptor of the host's can't be had in the guest
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    preserve_fds: u32,
    /// Name of the container
    id: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    if arguments.detach || arguments.console_socket.is_some() {
        let work = |reporter: &mut Reporter| run(arguments, globals, reporter);
        return background::run(globals.report_fd, arguments.pid_file.as_deref(), work);
    }
    background::write_pid(arguments.pid_file.as_deref(), std::process::id())?;
    run(arguments, globals, &mut Reporter::nobody())
}

/// Runs the process to its end: its exit status.
fn run(arguments: &Arguments, globals: &Globals, reporter: &mut Reporter) -> Result<u8> {
    let home = Home::new(&globals.root, &arguments.id)?;
    let mut process = process(arguments, &home.load()?)?;
    let tty = process["terminal"] == true;
    let socket = arguments.console_socket.as_deref();
    check_console(tty, socket, arguments.detach)?;
    if let Some(socket) = socket {
        console::take_over(socket, None)?;
    }
    if tty && let Some((columns, rows)) = terminal::size() {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(attend(&home, &process, tty, reporter))?;
    Ok(status.min(255) as u8)
}

async fn attend(home: &Home, process: &Value, tty: bool, reporter: &mut Reporter) -> Result<u32> {
    let exec = format!("exec-{}", std::process::id());
    let mut signals = Signals::listen()?;
    let control = Control::over(call::connect_to(home)?)?;
    let file = super::memory_file(&serde_json::to_vec(process)?)?;
    let (input, outputs) = {
        let (theirs_in, input) = pipe2(OFlag::O_CLOEXEC)?;
        let (output, theirs_out) = pipe2(OFlag::O_CLOEXEC)?;
        let (error, theirs_err) = pipe2(OFlag::O_CLOEXEC)?;
        let mut fds = vec![file.as_fd(), theirs_in.as_fd(), theirs_out.as_fd()];
        if !tty {
            fds.push(theirs_err.as_fd());
        }
        control.send(&Call::Exec { exec: exec.clone() }, &fds).await?;
        (input, [Some(output), (!tty).then_some(error)])
    };
    if let (Answer::Failed(message), _) = control.receive().await? {
        bail!(message);
    }
    let raw = if tty { RawTerminal::enter()? } else { None };
    // Never joined: its read ends only when somebody ends it.
    carry(File::from(std::io::stdin().as_fd().try_clone_to_owned()?), input);
    let [output, error] = outputs;
    let mut carried = Vec::new();
    carried.extend(output.map(|pipe| carry_out(pipe, std::io::stdout().as_fd())).transpose()?);
    carried.extend(error.map(|pipe| carry_out(pipe, std::io::stderr().as_fd())).transpose()?);
    reporter.ready();
    let status = loop {
        tokio::select! {
            answer = control.receive() => break match answer {
                Ok((Answer::Exited(status), _)) => status,
                Ok((Answer::Failed(message), _)) => bail!(message),
                // The container has ended, and its monitor with it.
                _ => Exit::LOST,
            },
            action = signals.next() => pass_on(home, &exec, action),
        }
    };
    for thread in carried {
        let _ = thread.join();
    }
    drop(raw);
    Ok(status)
}

/// Passes a signal on from a thread of its own: the monitor may take its time.
fn pass_on(home: &Home, exec: &str, action: Action) {
    let exec = exec.to_owned();
    let call = match action {
        Action::Forward(signal) => Call::Kill { exec, signal: signal as u32, all: false },
        Action::Resize => match terminal::size() {
            Some((columns, rows)) => Call::Resize { exec, columns, rows },
            None => return,
        },
    };
    let home = home.clone();
    std::thread::spawn(move || call::ask(&home, &call, &[]));
}

fn carry_out(pipe: OwnedFd, to: std::os::fd::BorrowedFd<'_>) -> Result<JoinHandle<()>> {
    Ok(carry(File::from(pipe), to.try_clone_to_owned()?))
}

/// Copies to the end of either side.
fn carry(mut from: File, to: OwnedFd) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut File::from(to));
    })
}

/// The OCI `process` object.
fn process(arguments: &Arguments, record: &Record) -> Result<Value> {
    if let Some(refused) =
        [("--apparmor", &arguments.apparmor), ("--process-label", &arguments.process_label)]
            .into_iter()
            .find(|(_, value)| value.is_some())
    {
        bail!("{}: the guest has none of the host's security modules", refused.0);
    }
    if arguments.preserve_fds > 0 {
        bail!("--preserve-fds: a descriptor of the host's can't be had in the guest");
    }
    if let Some(path) = &arguments.process {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        return serde_json::from_slice(&text).with_context(|| path.display().to_string());
    }
    if arguments.command.is_empty() {
        bail!("process args cannot be empty");
    }
    let mut process = record.process.clone();
    process["args"] = json!(arguments.command);
    process["terminal"] = arguments.tty.into();
    if let Some(cwd) = &arguments.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some((uid, gid)) = arguments.user {
        process["user"] = json!({ "uid": uid, "gid": gid.unwrap_or_default() });
    }
    extend(&mut process, "/user/additionalGids", &arguments.additional_gids);
    extend(&mut process, "/env", &arguments.env);
    for set in ["bounding", "effective", "permitted"] {
        extend(&mut process, &format!("/capabilities/{set}"), &arguments.cap);
    }
    if arguments.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    Ok(process)
}

/// Adds to the list at a place of the form `/name` or `/name/name`, which may not be there yet.
fn extend<T: Into<Value> + Clone>(process: &mut Value, place: &str, more: &[T]) {
    if !more.is_empty() {
        let list = place.split('/').skip(1).fold(process, |value, name| &mut value[name]);
        let mut items = list.as_array().cloned().unwrap_or_default();
        items.extend(more.iter().cloned().map(Into::into));
        *list = items.into();
    }
}

fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    Ok(match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(text)?, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parsed::parsed;
    use sandbox::persist::ProcessId;

    fn asked(words: &[&str]) -> Result<Value> {
        let arguments = parsed(words)?;
        let record = Record {
            oci_version: "1.2.0".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            annotations: std::collections::HashMap::new(),
            process: json!({"args": ["init"], "cwd": "/", "terminal": true, "env": ["A=1"],
                "user": {"uid": 5, "gid": 6, "additionalGids": [7]}}),
            monitor: ProcessId { pid: 1, start: 1 },
            foreground: false,
        };
        process(&arguments, &record)
    }

    #[test]
    fn an_exec_begins_with_the_containers_process() {
        let expected = json!({"args": ["ls", "-l"], "cwd": "/", "terminal": false, "env": ["A=1"],
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]}});
        assert_eq!(asked(&["c", "ls", "-l"]).unwrap(), expected);
    }

    #[test]
    fn options_are_over_it() {
        let words = [
            "-t",
            "--cwd",
            "/x",
            "-e",
            "B=2",
            "-u",
            "1:2",
            "-g",
            "8",
            "--no-new-privs",
            "--cap",
            "CAP_KILL",
            "c",
            "sh",
        ];
        let process = asked(&words).unwrap();
        assert_eq!(process["user"], json!({"uid": 1, "gid": 2, "additionalGids": [8]}));
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_KILL"]));
        assert_eq!(
            (&process["terminal"], &process["noNewPrivileges"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(process["cwd"], "/x");
    }

    #[test]
    fn what_the_guest_has_not_is_refused_by_name() {
        for (words, name) in [
            (&["--apparmor", "x", "c", "ls"][..], "--apparmor"),
            (&["--process-label", "x", "c", "ls"], "--process-label"),
            (&["--preserve-fds", "1", "c", "ls"], "--preserve-fds"),
            (&["c"], "args"),
        ] {
            let error = asked(words).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
