//! Execs in every state of a container, terminals in the foreground, and who is told of whom.

use super::container::{Container, WAITS, kata};
use super::receive_descriptor;
use crate::bundle::config;
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Result, bail};
use nix::libc;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    an_exec_joins_a_container_that_waits_for_its_start,
    an_exec_goes_where_it_is_asked_to,
    a_pidfd_is_of_the_process_that_stands_for_it;
    crate::Scope::AllOnce;
    a_run_that_is_kept_stays_until_it_is_deleted,
    an_exec_in_a_paused_container_waits_if_it_may,
    what_is_paused_before_its_start_can_be_ended,
    an_exec_keeps_the_groups_of_the_container,
    a_terminal_in_the_foreground_has_plain_newlines,
    an_execs_terminal_has_the_size_that_its_file_asks_for,
    a_process_comes_by_a_descriptor_also_in_the_background,
);

fn what_is_paused_before_its_start_can_be_ended(context: &Context) -> Result<()> {
    for (command, more) in [("kill", "TERM"), ("kill", "KILL"), ("delete", "--force")] {
        let container = Container::new(context, WAITS)?;
        container.create()?;
        container.say("pause", &[])?.expect_code(0)?;
        if container.state()?["status"] != "paused" {
            bail!("paused, it is {}", container.state()?["status"]);
        }
        container.say(command, &[more])?.expect_code(0)?;
        if command == "kill" {
            container.wait_for_status("stopped")?;
            container.say("delete", &[])?.expect_code(0)?;
        }
        container.say("state", &[])?.expect_error(&["does not exist"])?;
    }
    Ok(())
}

fn an_exec_joins_a_container_that_waits_for_its_start(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.create()?;
    let said = container.say("exec", &["cat", "/proc/1/comm"])?.expect_code(0)?.text();
    if said == "sh" || container.state()?["status"] != "created" {
        bail!("before its start pid 1 is {said:?}, and it is {}", container.state()?["status"]);
    }
    container.say("start", &[])?.expect_code(0)?;
    container.wait_for_output("up")?;
    let said = container.say("exec", &["cat", "/proc/1/comm"])?.expect_code(0)?.text();
    if said != "sh" {
        bail!("after its start pid 1 is {said:?}");
    }
    Ok(())
}

/// As a shell does it: `--process <(…)`.
fn a_process_comes_by_a_descriptor_also_in_the_background(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    let process = json!({"args": ["touch", "/tmp/made"], "cwd": "/", "env": ["PATH=/bin"]});
    fs::write(container.file("process"), process.to_string())?;
    let script = format!(
        "cat {} | {{ exec 9<&0 </dev/null; kata-like exec -d --process /proc/self/fd/9 {}; }}",
        container.file("process").display(),
        container.id
    );
    command::output(Command::new("sh").args(["-c", &script]))?.expect_code(0)?;
    let look = "until [ -e /tmp/made ]; do sleep 0.1; done";
    container.say("exec", &["timeout", "10", "sh", "-c", look])?.expect_code(0)?;
    Ok(())
}

fn an_exec_in_a_paused_container_waits_if_it_may(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    container.say("pause", &[])?.expect_code(0)?;
    let refused = "cannot exec in a paused container (use --ignore-paused to override)";
    container.say("exec", &["true"])?.expect_code(255)?.expect_stderr(refused)?;
    let mut exec = kata(&["exec", "--ignore-paused", &container.id, "echo", "resumed"]);
    let waiting = Running::start(&mut exec, Vec::new())?;
    std::thread::sleep(Duration::from_secs(1));
    if container.state()?["status"] != "paused" {
        bail!("the exec resumed the container");
    }
    container.say("resume", &[])?.expect_code(0)?;
    let said = waiting.finish(DEADLINE)?.expect_code(0)?.text();
    if said != "resumed" {
        bail!("the exec said {said:?}");
    }
    Ok(())
}

fn an_exec_goes_where_it_is_asked_to(context: &Context) -> Result<()> {
    let mut config = config(&["sh", "-c", WAITS]);
    config["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
    ]);
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let container = Container::of(context, &config)?;
    container.run()?;
    let exec = |cgroup: &str, words: &[&str]| {
        let options = ["exec", "--cgroup", cgroup, &container.id];
        super::say(&[&options, words].concat())
    };
    let own = ["cat", "/proc/self/cgroup"];
    exec("..", &own)?.expect_error(&["bad sub cgroup path"])?;
    exec("nonexistent", &own)?.expect_error(&["cgroup", "no such file or directory"])?;
    exec("cpu:x", &own)?.expect_error(&["version 2"])?;
    for (cgroup, place) in [("/", "0::/"), ("made/below", "0::/made/below"), ("/made", "0::/made")]
    {
        if cgroup == "made/below" {
            exec("/", &["mkdir", "-p", "/sys/fs/cgroup/made/below"])?.expect_code(0)?;
        }
        let said = exec(cgroup, &own)?.expect_code(0)?.text();
        if said != place {
            bail!("with --cgroup {cgroup} an exec is in {said:?}");
        }
    }
    Ok(())
}

fn an_exec_keeps_the_groups_of_the_container(context: &Context) -> Result<()> {
    let mut config = config(&["sh", "-c", WAITS]);
    config["process"]["user"] = json!({"uid": 3, "gid": 4, "additionalGids": [5]});
    let container = Container::of(context, &config)?;
    container.run()?;
    for (options, ids) in
        [(&[][..], "3 4 4 5"), (&["-u", "8"], "8 4 4 5"), (&["-u", "8:9"], "8 9 9 5")]
    {
        let words = ["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"];
        let said = super::say(&[&["exec"], options, &[&*container.id], &words].concat())?;
        let said = said.expect_code(0)?.text();
        if said != ids {
            bail!("exec {options:?} runs as {said:?}, not {ids:?}");
        }
    }
    Ok(())
}

/// What it takes for a terminal.
fn with_terminal(args: &[&str]) -> Value {
    let mut config = config(args);
    config["process"]["terminal"] = json!(true);
    config["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
    ]);
    config
}

fn a_terminal_in_the_foreground_has_plain_newlines(context: &Context) -> Result<()> {
    let container =
        Container::of(context, &with_terminal(&["sh", "-c", "test -t 1; echo $?; echo b"]))?;
    let mut run = kata(&["run", "--bundle"]);
    let said = command::output(run.arg(&container.bundle.0).arg(&container.id))?.expect_code(0)?;
    if said.stdout != b"0\nb\n" {
        bail!("run wrote {:?}", String::from_utf8_lossy(&said.stdout));
    }
    let waiting = with_terminal(&["sh", "-c", WAITS]);
    let mut waiting = waiting;
    waiting["process"]["terminal"] = json!(false);
    let container = Container::of(context, &waiting)?;
    container.run()?;
    let said =
        super::say(&["exec", "--tty", &container.id, "sh", "-c", "test -t 1; echo $?; echo b"])?;
    if said.expect_code(0)?.stdout != b"0\nb\n" {
        bail!("an exec's terminal changes newlines");
    }
    Ok(())
}

fn an_execs_terminal_has_the_size_that_its_file_asks_for(context: &Context) -> Result<()> {
    let mut config = with_terminal(&["sh", "-c", WAITS]);
    config["process"]["terminal"] = json!(false);
    let container = Container::of(context, &config)?;
    container.run()?;
    let process = container.file("process.json");
    let asked = json!({"terminal": true, "consoleSize": {"height": 10, "width": 110}, "cwd": "/",
        "args": ["sh", "-c", "stty size > /tmp/size; sleep 1000"], "env": ["PATH=/bin"]});
    fs::write(&process, asked.to_string())?;
    let path = container.file("console.sock");
    let listener = UnixListener::bind(&path)?;
    let mut exec = kata(&["exec", "--detach", "--console-socket"]);
    exec.arg(&path).arg("--process").arg(&process).arg(&container.id);
    let exec = Running::start(&mut exec, Vec::new())?;
    let _master = receive_descriptor(&listener)?;
    exec.finish(DEADLINE)?.expect_code(0)?;
    let mut size = String::new();
    command::eventually("the size is written", DEADLINE, || {
        size = container.say("exec", &["cat", "/tmp/size"])?.text();
        Ok(!size.is_empty())
    })?;
    if size != "10 110" {
        bail!("the terminal's size is {size:?}");
    }
    Ok(())
}

fn a_run_that_is_kept_stays_until_it_is_deleted(context: &Context) -> Result<()> {
    let container = Container::new(context, "echo out; exit 5")?;
    let mut run = kata(&["run", "--keep", "--bundle"]);
    command::output(run.arg(&container.bundle.0).arg(&container.id))?.expect_code(5)?;
    let state = container.state()?;
    if state["status"] != "stopped" || state["pid"] != 0 {
        bail!("kept, it is {state}");
    }
    // The next run in the foreground removes what is abandoned, and this is not.
    let other = Container::new(context, "true")?;
    let mut run = kata(&["run", "--bundle"]);
    command::output(run.arg(&other.bundle.0).arg(&other.id))?.expect_code(0)?;
    container.say("logs", &[])?.expect_code(0)?;
    container.wait_for_status("stopped")?;
    container.say("delete", &[])?.expect_code(0)?;
    container.say("state", &[])?.expect_error(&["does not exist"]).map(drop)
}

fn a_pidfd_is_of_the_process_that_stands_for_it(context: &Context) -> Result<()> {
    for (way, signal) in [(&["create"][..], libc::SIGTERM), (&["run", "--detach"], libc::SIGKILL)] {
        let container = Container::new(context, "sleep 1000")?;
        let path = container.file("pidfd.sock");
        let listener = UnixListener::bind(&path)?;
        let mut make = kata(way);
        make.arg("--pidfd-socket").arg(&path).arg("--pid-file").arg(container.file("pid"));
        make.arg("--bundle").arg(&container.bundle.0).arg(&container.id);
        let out = File::create(container.file("out"))?;
        let mut making = make.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let pidfd = receive_descriptor(&listener)?;
        if !making.wait()?.success() {
            bail!("{way:?}: {}", fs::read_to_string(container.file("out"))?);
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = format!("Pid:\t{}\n", container.pid()?);
        if !info.contains(&pid) || container.state()?["pid"] != container.pid()? {
            bail!("{pid:?} is not what is told: {info}, {}", container.state()?);
        }
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and the only pointer is null, which asks for the usual signal.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0)
        };
        nix::errno::Errno::result(sent)?;
        container.wait_for_status("stopped")?;
    }
    Ok(())
}
