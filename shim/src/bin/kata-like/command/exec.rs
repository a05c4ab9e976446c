//! `exec`: one more process in a running container.
//!
//! This process carries its standard streams over pipes to the monitor. Detached, it is a process in the
//! background that does so, lives as long as the new process, and ends with its status.

use crate::Globals;
use crate::announce::Announcement;
use crate::background::{self, Reporter};
use crate::monitor::call::{self, Answer, Call, CallError, Exec};
use crate::monitor::{check_console, console};
use crate::record::{Home, Record};
use crate::run::signals::{Action, Signals};
use crate::run::terminal::{self, Output, RawTerminal};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use sandbox::event::Exit;
use sandbox::vm::Control;
use sandbox::{lenient, limits};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a start may take before it is asked whether the monitor still answers.
const LOOK: Duration = Duration::from_secs(5);

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
    #[command(flatten)]
    announcement: Announcement,
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
    /// Put it into a cgroup, which exists, below the container's
    #[arg(long, value_name = "CGROUP")]
    cgroup: Vec<String>,
    /// In a paused container, wait until it is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Name of the container
    id: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    let work = |reporter: &mut Reporter| run(arguments, globals, reporter);
    if arguments.detach {
        return background::run(globals.report_fd, work);
    }
    work(&mut Reporter::nobody())
}

/// Runs the process to its end: its exit status.
fn run(arguments: &Arguments, globals: &Globals, reporter: &mut Reporter) -> Result<u8> {
    let home = Home::new(globals.root(), &arguments.id)?;
    let mut process = process(arguments, &home.load()?)?;
    let tty = process["terminal"] == true;
    let socket = arguments.console_socket.as_deref();
    check_console(tty, socket, arguments.detach)?;
    if let Some(socket) = socket {
        console::take_over(socket, asked_size(&process))?;
    } else if tty && let Some((columns, rows)) = terminal::size() {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(attend(&home, &process, arguments, reporter))?;
    Ok(status.min(255) as u8)
}

/// Columns and rows that a `process` asks for.
fn asked_size(process: &Value) -> Option<(u16, u16)> {
    let cells = |name| u16::try_from(process["consoleSize"][name].as_u64()?).ok();
    Some((cells("width")?, cells("height")?))
}

async fn attend(
    home: &Home,
    process: &Value,
    arguments: &Arguments,
    reporter: &mut Reporter,
) -> Result<u32> {
    let tty = process["terminal"] == true;
    let exec = format!("exec-{}", std::process::id());
    let mut signals = Signals::listen()?;
    let control = Control::over(connect(home)?)?;
    let file = super::memory_file(&serde_json::to_vec(process)?)?;
    let (input, outputs) = {
        let (theirs_in, input) = pipe2(OFlag::O_CLOEXEC)?;
        let (output, theirs_out) = pipe2(OFlag::O_CLOEXEC)?;
        let (error, theirs_err) = pipe2(OFlag::O_CLOEXEC)?;
        let mut fds = vec![file.as_fd(), theirs_in.as_fd(), theirs_out.as_fd()];
        if !tty {
            fds.push(theirs_err.as_fd());
        }
        let asked = Exec {
            id: exec.clone(),
            ignore_paused: arguments.ignore_paused,
            sub_cgroup: sub_cgroup(&arguments.cgroup)?,
            // In the foreground it is the user's terminal that does what is to be done about them.
            plain_newlines: tty && !arguments.detach,
        };
        control.send(&Call::Exec(asked), &fds).await?;
        (input, [Some(output), (!tty).then_some(error)])
    };
    started(home, &control).await?;
    if let Err(error) = arguments.announcement.make() {
        let kill = Call::Kill { exec, signal: libc::SIGKILL as u32, all: false };
        call::ask(home, &kill, &[])?;
        return Err(error);
    }
    let output = if arguments.detach { Output::Raw } else { Output::Processed };
    let raw = if tty { RawTerminal::enter(output)? } else { None };
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

fn connect(home: &Home) -> Result<OwnedFd> {
    call::connect_to(home).map_err(|error| match error.downcast_ref() {
        Some(CallError::NotRunning) => anyhow::anyhow!(call::EXEC_IN_STOPPED),
        _ => error,
    })
}

/// Waits until the process runs, as long as the monitor answers meanwhile.
async fn started(home: &Home, control: &Control) -> Result<()> {
    loop {
        tokio::select! {
            answer = control.receive() => return match answer?.0 {
                Answer::Failed(message) => bail!(message),
                _ => Ok(()),
            },
            () = tokio::time::sleep(LOOK) => {
                let home = home.clone();
                tokio::task::spawn_blocking(move || call::check_answers(&home)).await??;
            }
        }
    }
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
        let path = &if arguments.detach { background::as_called(path) } else { path.clone() };
        let named = || path.display().to_string();
        let text = std::fs::read(path).with_context(named)?;
        let mut process = lenient::parse(&text).with_context(named)?;
        // As the monitor reads it: both have to see the same terminal and limits in it.
        lenient::process(&mut process);
        let mut process = whole(process)?;
        inherit_limits(&mut process, &record.process, &limits::own());
        return Ok(process);
    }
    if arguments.command.is_empty() {
        bail!("exec args cannot be empty");
    }
    let mut process = record.process.clone();
    process["args"] = json!(arguments.command);
    process["terminal"] = arguments.tty.into();
    if let Some(cwd) = &arguments.cwd {
        process["cwd"] = json!(cwd);
    }
    // The group and the additional ones stay those of the container's process, as with runc.
    if let Some((uid, gid)) = arguments.user {
        process["user"]["uid"] = uid.into();
        if let Some(gid) = gid {
            process["user"]["gid"] = gid.into();
        }
    }
    extend(&mut process, "/user/additionalGids", &arguments.additional_gids);
    extend(&mut process, "/env", &arguments.env);
    for set in ["bounding", "effective", "permitted"] {
        extend(&mut process, &format!("/capabilities/{set}"), &arguments.cap);
    }
    // Without an inheritable set there can be no ambient one.
    if process["capabilities"]["inheritable"].is_array() {
        extend(&mut process, "/capabilities/ambient", &arguments.cap);
    }
    if arguments.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    inherit_limits(&mut process, &record.process, &limits::own());
    Ok(process)
}

/// The limits of a process that has none are those of its container's; what is not named is as this process has it.
fn inherit_limits(process: &mut Value, containers: &Value, own: &[PosixRlimit]) {
    let of = |process: &Value| process["rlimits"].as_array().filter(|all| !all.is_empty()).cloned();
    let mut limits = of(process).or_else(|| of(containers)).unwrap_or_default();
    for limit in own {
        let kind = json!(limit.typ());
        if limits.iter().any(|named| named["type"] == kind) {
            continue;
        }
        let most = match limit.typ() {
            PosixRlimitType::RlimitNofile => limits::MOST_FILES,
            _ => u64::MAX,
        };
        let (soft, hard) = (limit.soft().min(most), limit.hard().min(most));
        limits.push(json!({"type": kind, "soft": soft, "hard": hard}));
    }
    process["rlimits"] = limits.into();
}

/// A `process` from a file: what Go's zero values are for is filled in, what must be there is checked, as runc does.
fn whole(mut process: Value) -> Result<Value> {
    let Some(members) = process.as_object_mut() else {
        bail!("process property must not be empty");
    };
    let user = members.entry("user").or_insert(Value::Null);
    if user.is_null() {
        *user = json!({});
    }
    if let Some(user) = user.as_object_mut() {
        for id in ["uid", "gid"] {
            user.entry(id).or_insert(0.into());
        }
    }
    match process["cwd"].as_str() {
        None | Some("") => bail!("Cwd property must not be empty"),
        Some(cwd) if !cwd.starts_with('/') => bail!("Cwd must be an absolute path"),
        Some(_) => {}
    }
    if process["args"].as_array().is_none_or(Vec::is_empty) {
        bail!("args must not be empty");
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

/// The one path that may be given; a controller before it has a meaning in version 1 of the cgroups only.
fn sub_cgroup(asked: &[String]) -> Result<String> {
    match asked {
        [] => Ok(String::new()),
        [path] if path.contains(':') => {
            bail!("invalid --cgroup argument: {path}: the guest's cgroups are of version 2")
        }
        [path] if path.is_empty() => Ok("/".into()),
        [path] => Ok(path.clone()),
        [first, ..] => {
            bail!("invalid --cgroup argument: {first} (missing <controller>: prefix)")
        }
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
    use crate::mappings::Mappings;
    use crate::parsed::parsed;
    use sandbox::persist::ProcessId;

    fn record() -> Record {
        Record {
            oci_version: "1.2.0".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            annotations: std::collections::HashMap::new(),
            process: json!({"args": ["init"], "cwd": "/", "terminal": true, "env": ["A=1"],
                "user": {"uid": 5, "gid": 6, "additionalGids": [7]}}),
            poststop: Vec::new(),
            mappings: Mappings::default(),
            monitor: ProcessId { pid: 1, start: 1 },
            foreground: false,
        }
    }

    fn asked(words: &[&str]) -> Result<Value> {
        let mut process = process(&parsed(words)?, &record())?;
        process.as_object_mut().unwrap().remove("rlimits").unwrap();
        Ok(process)
    }

    #[test]
    fn an_exec_begins_with_the_containers_process() {
        let expected = json!({"args": ["ls", "-l"], "cwd": "/", "terminal": false, "env": ["A=1"],
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]}});
        assert_eq!(asked(&["c", "ls", "-l"]).unwrap(), expected);
    }

    #[test]
    fn a_file_is_read_as_gos_json_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            process(&parsed(&["--process", path.to_str().unwrap(), "c"]).unwrap(), &record())
        };
        let core = r#""Rlimits":[{"Type":"RLIMIT_CORE","Soft":1,"Hard":2}]"#;
        let text = format!(r#"{{"Args":["true"],"Cwd":"/","Terminal":true,"Env":null,{core}}} x"#);
        let process = read(text.as_bytes()).unwrap();
        assert_eq!(process["args"], json!(["true"]));
        assert_eq!(process["terminal"], json!(true));
        let limits = process["rlimits"].as_array().unwrap();
        let core = json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 2});
        let cores: Vec<_> = limits.iter().filter(|limit| limit["type"] == core["type"]).collect();
        assert_eq!(cores, [&core]);
        assert!(read(b"{\"args\": [\"\xff\"], \"cwd\": \"/\"}").is_ok());
        for wrong in [&b"null"[..], b"[]", b"{", b"{}"] {
            assert!(read(wrong).is_err());
        }
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
        assert_eq!(process["user"], json!({"uid": 1, "gid": 2, "additionalGids": [7, 8]}));
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_KILL"]));
        assert_eq!(
            (&process["terminal"], &process["noNewPrivileges"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(process["cwd"], "/x");
    }

    /// As runc's main branch: also to the ambient set if there is an inheritable one, whatever is in that.
    #[test]
    fn capabilities_are_added_to_the_sets_that_runc_adds_them_to() {
        let sets = |sets: Value| {
            let arguments = parsed(&["--cap", "CAP_KILL", "c", "sh"]).unwrap();
            let mut record = record();
            record.process["capabilities"] = sets;
            process(&arguments, &record).unwrap()["capabilities"].clone()
        };
        let kill = json!(["CAP_KILL"]);
        let three = json!({"bounding": kill, "effective": kill, "permitted": kill});
        assert_eq!(sets(json!({})), three);
        assert_eq!(sets(Value::Null), three);
        for inheritable in [json!([]), json!(["CAP_SYSLOG"])] {
            let mut expected = three.clone();
            expected["inheritable"] = inheritable.clone();
            expected["ambient"] = json!(["CAP_CHOWN", "CAP_KILL"]);
            let own = json!({"inheritable": inheritable, "ambient": ["CAP_CHOWN"]});
            assert_eq!(sets(own), expected);
        }
    }

    #[test]
    fn a_user_without_a_group_keeps_the_containers() {
        let process = asked(&["-u", "1", "c", "id"]).unwrap();
        assert_eq!(process["user"], json!({"uid": 1, "gid": 6, "additionalGids": [7]}));
    }

    #[test]
    fn limits_are_the_process_s_or_its_container_s_and_otherwise_the_caller_s() {
        let limit =
            |kind: &str, hard: u64| json!({"type": kind, "soft": hard.min(9), "hard": hard});
        let own = json!([limit("RLIMIT_CORE", 1), limit("RLIMIT_NOFILE", u64::MAX)]);
        let own: Vec<PosixRlimit> = serde_json::from_value(own).unwrap();
        let container = json!({"rlimits": [limit("RLIMIT_CORE", 2)]});
        let after = |mut process: Value| {
            inherit_limits(&mut process, &container, &own);
            process["rlimits"].clone()
        };
        let files = limit("RLIMIT_NOFILE", 1 << 30);
        for none in [json!({}), json!({"rlimits": null}), json!({"rlimits": []})] {
            assert_eq!(after(none), json!([limit("RLIMIT_CORE", 2), files]));
        }
        let named = json!([limit("RLIMIT_CPU", 3), limit("RLIMIT_NOFILE", 4)]);
        let all = json!([named[0], named[1], limit("RLIMIT_CORE", 1)]);
        assert_eq!(after(json!({"rlimits": named})), all);
    }

    #[test]
    fn a_process_from_a_file_may_leave_out_what_go_fills_in() {
        let least = whole(json!({"args": ["ls"], "cwd": "/"})).unwrap();
        assert_eq!(least["user"], json!({"uid": 0, "gid": 0}));
        let user = whole(json!({"args": ["ls"], "cwd": "/", "user": {"uid": 3}})).unwrap();
        assert_eq!(user["user"], json!({"uid": 3, "gid": 0}));
        for (process, words) in [
            (json!(null), "process property must not be empty"),
            (json!({"args": ["ls"]}), "Cwd property must not be empty"),
            (json!({"args": ["ls"], "cwd": "x"}), "Cwd must be an absolute path"),
            (json!({"args": [], "cwd": "/"}), "args must not be empty"),
        ] {
            assert_eq!(whole(process).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn one_cgroup_may_be_asked_for() {
        let words =
            |words: &[&str]| sub_cgroup(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(words(&[]).unwrap(), "");
        assert_eq!(words(&["a/b"]).unwrap(), "a/b");
        assert!(words(&["cpu:a"]).unwrap_err().to_string().contains("version 2"));
        assert!(words(&["a", "b"]).unwrap_err().to_string().contains("prefix"));
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
