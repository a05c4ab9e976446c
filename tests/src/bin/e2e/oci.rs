//! `kata-like` as an OCI runtime: what runc's users and callers do with its command line.

pub mod alike;
mod container;
pub mod execs;
pub mod failures;
pub mod monitor;

use crate::bundle::config;
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use container::{Container, WAITS, kata, say};
use nix::cmsg_space;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    a_life_by_command_line,
    its_pid_can_be_waited_for_and_signalled,
    an_exec_takes_its_input_file_and_signals,
    a_terminal_goes_to_the_console_socket,
    everyday_commands_tell_the_truth,
    a_killed_monitor_leaves_a_stopped_container,
    errors_have_runcs_shape;
    crate::Scope::AllOnce;
    of_many_creates_at_once_one_wins,
    a_killed_create_leaves_nothing_that_delete_cannot_remove,
    completions_and_manual_pages_are_made,
    an_exec_in_the_background_has_a_process_of_its_own,
    what_a_profile_logs_is_in_the_logs,
    an_exec_joins_an_init_that_made_a_tree_of_its_cgroup,
    a_container_has_the_users_of_another_that_it_names,
    a_run_in_the_foreground_can_be_entered_and_removed,
);

fn a_life_by_command_line(context: &Context) -> Result<()> {
    let mut config = config(&["sh", "-c", WAITS]);
    config["annotations"] = json!({"org.example": "kept"});
    let container = Container::of(context, &config)?;
    container.create()?;
    let state = container.state()?;
    let bundle = container.bundle.0.to_string_lossy().into_owned();
    let expected = json!({"id": container.id, "status": "created", "bundle": bundle, "pid": container.pid()?,
        "ociVersion": "1.2.0", "annotations": {"org.example": "kept"}});
    for (field, value) in expected.as_object().context("no object")? {
        if state[field] != *value {
            bail!("{field} is {}, not {value}", state[field]);
        }
    }
    container.say("start", &[])?.expect_code(0)?;
    container.wait_for_output("up")?;
    if container.state()?["status"] != "running" {
        bail!("started, it is {}", container.state()?["status"]);
    }
    container.say("start", &[])?.expect_error(&["cannot start an already running container"])?;
    container.say("delete", &[])?.expect_error(&["not stopped: running"])?;
    container.say("kill", &["TERM"])?.expect_code(0)?;
    container.wait_for_output("asked")?;
    container.wait_for_status("stopped")?;
    container.say("kill", &[])?.expect_error(&["container not running"])?;
    container.say("delete", &[])?.expect_code(0)?;
    container.say("state", &[])?.expect_error(&["container does not exist"])?;
    container.say("delete", &[])?.expect_error(&["container does not exist"])?;
    container.say("delete", &["--force"])?.expect_code(0).map(drop)
}

/// As conmon does it: it is the reaper of its descendants.
fn its_pid_can_be_waited_for_and_signalled(context: &Context) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let container = Container::new(context, WAITS)?;
    container.run()?;
    let pid = Pid::from_raw(container.pid()?);
    kill(pid, Signal::SIGTERM)?;
    let ended = waitpid(pid, None)?;
    nix::sys::prctl::set_child_subreaper(false)?;
    if ended != WaitStatus::Exited(pid, 7) {
        bail!("its process ended with {ended:?}");
    }
    container.wait_for_output("asked")?;
    container.wait_for_status("stopped")
}

/// Beside what runc does alike, for which see `as_runc`.
fn an_exec_takes_its_input_file_and_signals(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    let bytes: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut cat = kata(&["exec", &container.id, "cat"]);
    let back = Running::start(&mut cat, bytes.clone())?.finish(DEADLINE)?.expect_code(0)?;
    if back.stdout != bytes {
        bail!("of {} bytes {} came back", bytes.len(), back.stdout.len());
    }
    let process = container.file("process.json");
    let asked = json!({"args": ["echo", "by file"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    fs::write(&process, asked.to_string())?;
    let mut by_file = kata(&["exec", "--process"]);
    let said = command::output(by_file.arg(&process).arg(&container.id))?.expect_code(0)?;
    if said.text() != "by file" {
        bail!("an exec by file said {:?}", said.text());
    }
    let mut sleep =
        kata(&["exec", &container.id, "sh", "-c", "trap 'kill $!; exit 9' INT; sleep 1000 & wait"]);
    let sleeping = Running::start(&mut sleep, Vec::new())?;
    command::eventually("the sleeper is there", DEADLINE, || {
        // Not the shell's own line, which names it before the trap is set.
        Ok(container.say("ps", &[])?.text().lines().any(|line| line.ends_with(" sleep 1000")))
    })?;
    sleeping.signal(Signal::SIGINT)?;
    sleeping.finish(DEADLINE)?.expect_code(9).map(drop)
}

fn an_exec_in_the_background_has_a_process_of_its_own(context: &Context) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let container = Container::new(context, WAITS)?;
    container.run()?;
    let pid_file = container.file("exec-pid");
    let mut exec = kata(&["exec", "--detach", "--pid-file"]);
    exec.arg(&pid_file).arg(&container.id).args(["sh", "-c", "sleep 1; exit 11"]);
    // Its standard streams stay with the process in the background.
    let status = exec.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !status.success() {
        bail!("exec --detach: {status}");
    }
    let pid = Pid::from_raw(fs::read_to_string(pid_file)?.parse()?);
    let ended = waitpid(pid, None)?;
    nix::sys::prctl::set_child_subreaper(false)?;
    if ended != WaitStatus::Exited(pid, 11) {
        bail!("its process ended with {ended:?}");
    }
    Ok(())
}

fn a_terminal_goes_to_the_console_socket(context: &Context) -> Result<()> {
    let script = "stty size; read line; echo got $line; \
        for i in $(seq 600); do stty size | grep -x '40 100' && exit 3; sleep 0.1; done";
    let mut config = config(&["sh", "-c", script]);
    config["mounts"] = json!([
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
    ]);
    config["process"]["terminal"] = json!(true);
    config["process"]["consoleSize"] = json!({"width": 91, "height": 31});
    let container = Container::of(context, &config)?;
    let no_socket = container.create_command()?.status()?;
    if no_socket.success() || !fs::read_to_string(container.file("out"))?.contains("console socket")
    {
        bail!("without a console socket: {}", fs::read_to_string(container.file("out"))?);
    }
    let path = container.file("console.sock");
    let listener = UnixListener::bind(&path)?;
    let mut create = kata(&["create", "--console-socket"]);
    create.arg(&path).arg("--bundle").arg(&container.bundle.0).arg(&container.id);
    let creating = Running::start(&mut create, Vec::new())?;
    let mut master = File::from(receive_descriptor(&listener)?);
    creating.finish(DEADLINE)?.expect_code(0)?;
    container.say("start", &[])?.expect_code(0)?;
    let mut seen = String::new();
    read_until(&mut master, &mut seen, "31 91")?;
    let size = nix::pty::Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives as long as the call.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    })?;
    master.write_all(b"words\n")?;
    read_until(&mut master, &mut seen, "got words")?;
    read_until(&mut master, &mut seen, "40 100")?;
    container.wait_for_status("stopped")
}

fn receive_descriptor(listener: &UnixListener) -> Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut bytes = [0; 256];
    let mut space = cmsg_space!(RawFd);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel has just made this descriptor for this process; nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    bail!("no terminal came")
}

fn read_until(master: &mut File, seen: &mut String, what: &str) -> Result<()> {
    let mut bytes = [0; 1024];
    while !seen.contains(what) {
        match master.read(&mut bytes) {
            Ok(n @ 1..) => seen.push_str(&String::from_utf8_lossy(&bytes[..n])),
            end => bail!("the terminal ended ({end:?}) after {seen:?}, before {what:?}"),
        }
    }
    Ok(())
}

fn everyday_commands_tell_the_truth(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    let listed: Value =
        serde_json::from_str(&say(&["list", "-f", "json"])?.expect_code(0)?.text())?;
    let own = listed.as_array().and_then(|all| all.iter().find(|one| one["id"] == *container.id));
    if own.context("it is not listed")?["pid"] != container.pid()? {
        bail!("listed as {own:?}");
    }
    if !say(&["list", "-q"])?.text().lines().any(|line| line == container.id) {
        bail!("list -q lacks it");
    }
    let ps = container.say("ps", &[])?.expect_code(0)?.text();
    if !ps.starts_with("UID") || !ps.contains("while :; do") {
        bail!("ps shows {ps:?}");
    }
    container.say("pause", &[])?.expect_code(0)?;
    if container.state()?["status"] != "paused" {
        bail!("paused, it is {}", container.state()?["status"]);
    }
    container.say("resume", &[])?.expect_code(0)?;
    say(&["update", "--memory", "40m", "--pids-limit", "33", &container.id])?.expect_code(0)?;
    say(&["update", "--cpu-rt-runtime", "7", &container.id])?.expect_error(&["realtime is not"])?;
    let stats = say(&["events", "--stats", &container.id])?.expect_code(0)?.text();
    let stats: Value = serde_json::from_str(&stats)?;
    let data = &stats["data"];
    if data["memory"]["usage"]["limit"] != 40 << 20 || data["pids"]["limit"] != 33 {
        bail!("events --stats after the update: {stats}");
    }
    if data["cpu"]["usage"]["total"].as_u64().unwrap_or_default() == 0 {
        bail!("no CPU time: {stats}");
    }
    let vmm = &data["sandbox"]["vmm"];
    let guest = vmm["memory"]["guest"].as_u64().unwrap_or_default();
    let ran = vmm["cpu"]["guest"].as_u64().unwrap_or_default();
    if guest < 8 << 20 || ran == 0 || data["sandbox"]["fileServer"]["memory"]["own"] == 0 {
        bail!("the sandbox's own figures: {stats}");
    }
    if !container.say("logs", &[])?.expect_code(0)?.text().contains("container created") {
        bail!("the guest's words are not in its logs");
    }
    let features: Value = serde_json::from_str(&say(&["features"])?.expect_code(0)?.text())?;
    if features["linux"]["cgroup"]["v2"] != true || features["ociVersionMin"] != "1.0.0" {
        bail!("features are {features}");
    }
    for word in ["version", "--version", "-v"] {
        let told = say(&[word])?.expect_code(0)?.text();
        if !told.starts_with("kata-like version ") || !told.contains("\nspec: ") {
            bail!("{word} tells {told:?}");
        }
    }
    container.say("kill", &["KILL"])?.expect_code(0)?;
    container.wait_for_status("stopped")
}

fn of_many_creates_at_once_one_wins(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    let creating: Vec<_> = (0..6)
        .map(|_| {
            let mut create = kata(&["create", "--bundle"]);
            create.arg(&container.bundle.0).arg(&container.id);
            Ok(create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
        })
        .collect::<Result<_>>()?;
    let mut won = 0;
    for mut one in creating {
        won += usize::from(one.wait()?.success());
    }
    if won != 1 || container.state()?["status"] != "created" {
        bail!("{won} of six creates succeeded; it is {}", container.state()?["status"]);
    }
    // Two at once remove it, and both are content.
    let removing: Vec<_> = (0..2)
        .map(|_| Ok(kata(&["delete", "--force", &container.id]).spawn()?))
        .collect::<Result<_>>()?;
    let mut done = Vec::new();
    for mut one in removing {
        done.push(one.wait()?);
    }
    if !done.iter().all(std::process::ExitStatus::success) {
        bail!("one of two deletes failed: {done:?}");
    }
    container.say("state", &[])?.expect_error(&["does not exist"]).map(drop)
}

fn a_killed_monitor_leaves_a_stopped_container(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    kill(Pid::from_raw(container.pid()?), Signal::SIGKILL)?;
    container.wait_for_status("stopped")?;
    let refused = "exec failed: cannot exec in a stopped container";
    container.say("exec", &["true"])?.expect_code(255)?.expect_stderr(refused)?;
    container.say("delete", &[])?.expect_code(0).map(drop)
}

fn a_killed_create_leaves_nothing_that_delete_cannot_remove(context: &Context) -> Result<()> {
    for after in [5, 50, 400] {
        let container = Container::new(context, WAITS)?;
        let mut creating = container.create_command()?.spawn()?;
        std::thread::sleep(Duration::from_millis(after));
        creating.kill()?;
        creating.wait()?;
        // The process in the background may still be making it: a delete waits for that.
        say(&["delete", "--force", &container.id])?.expect_code(0)?;
        // Killed before it took the id, it takes it now or never.
        command::eventually("nothing is there", DEADLINE, || {
            Ok(kata(&["delete", "--force", &container.id]).status()?.success()
                && !Path::new("/run/kata-like-cli").join(&container.id).exists())
        })?;
    }
    Ok(())
}

fn a_run_in_the_foreground_can_be_entered_and_removed(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    let mut run = kata(&["run", "--bundle"]);
    let running = Running::start(run.arg(&container.bundle.0).arg(&container.id), Vec::new())?;
    command::eventually("it runs", DEADLINE, || {
        Ok(container.say("state", &[])?.text().contains("\"running\""))
    })?;
    let seen = container.say("exec", &["echo", "inside"])?.expect_code(0)?.text();
    if seen != "inside" {
        bail!("an exec said {seen:?}");
    }
    container.say("kill", &["TERM"])?.expect_code(0)?;
    running.finish(DEADLINE)?.expect_code(7)?;
    container.say("state", &[])?.expect_error(&["does not exist"])?;
    let mut run = kata(&["run", "--detach", "--bundle"]);
    run.arg(&container.bundle.0).arg(&container.id);
    let out = File::create(container.file("out"))?;
    run.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    if !run.status()?.success() {
        bail!("run --detach: {}", fs::read_to_string(container.file("out"))?);
    }
    container.wait_for_output("up")?;
    container.say("delete", &["--force"])?.expect_code(0).map(drop)
}

fn errors_have_runcs_shape(context: &Context) -> Result<()> {
    let plain = say(&["state", "nosuch"])?.expect_code(1)?;
    if !plain.stderr.contains("level=error msg=\"container does not exist\"") {
        bail!("without a log: {:?}", plain.stderr);
    }
    let log = PathBuf::from(format!("/tmp/{}.log", context.fresh_id()));
    let mut state = kata(&["--log-format", "json", "--log"]);
    command::output(state.arg(&log).args(["state", "nosuch"]))?.expect_code(1)?;
    let line: Value = serde_json::from_str(fs::read_to_string(&log)?.trim())?;
    fs::remove_file(&log)?;
    if line["level"] != "error" || line["msg"] != "container does not exist" {
        bail!("the log has {line}");
    }
    say(&["kill", "nosuch", "NOSUCH"])?.expect_error(&["unknown signal"])?;
    say(&["state", "../etc"])?.expect_error(&["invalid container ID format"])?;
    say(&["state", ""])?.expect_error(&["container id cannot be empty"])?;
    say(&["create", "--bundle", "/nowhere", "x"])?.expect_error(&["the bundle /nowhere"])?;
    say(&["create", "--bundle", "/tmp", "x"])?
        .expect_error(&["JSON specification file config.json not found"])?;
    say(&["--root", "/nowhere/at/all", "list"])?
        .expect_error(&["open /nowhere/at/all: no such file or directory"])?;
    say(&["--root", "/", "list"])?.expect_error(&["--root argument should not be set to /"])?;
    say(&["checkpoint", "--image-path", "x", "y"])?.expect_error(&["checkpointed"])?;
    let container = Container::of(context, &config(&["nosuch"]))?;
    if container.create_command()?.status()?.success() {
        bail!("a container of a missing program was created");
    }
    let said = fs::read_to_string(container.file("out"))?;
    if !said.contains("executable file not found in $PATH") {
        bail!("it said {said:?}");
    }
    container.say("state", &[])?.expect_error(&["does not exist"]).map(drop)
}

fn completions_and_manual_pages_are_made(context: &Context) -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let script = say(&["completion", shell])?.expect_code(0)?.text();
        if !script.contains("resume") {
            bail!("the completion for {shell} knows no commands");
        }
    }
    let directory = PathBuf::from(format!("/tmp/{}-man", context.fresh_id()));
    command::output(kata(&["man"]).arg(&directory))?.expect_code(0)?;
    let page = fs::read_to_string(directory.join("kata-like-exec.1"))?;
    fs::remove_dir_all(&directory)?;
    if !page.contains("pid\\-file") {
        bail!("the manual of exec lacks an option");
    }
    Ok(())
}

/// As the kernel says it: the call's number on `x86_64`, and the filter's answer.
fn what_a_profile_logs_is_in_the_logs(context: &Context) -> Result<()> {
    let mut spec = config(&["sh", "-c", &format!("sync; {WAITS}")]);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_LOG"}]});
    let container = Container::of(context, &spec)?;
    container.run()?;
    command::eventually("the call is in the logs", DEADLINE, || {
        let logs = container.say("logs", &[])?.expect_code(0)?.text();
        Ok(logs.lines().any(|l| l.contains("syscall=162 ") && l.contains("code=0x7ffc0000")))
    })?;
    container.say("delete", &["--force"])?.expect_code(0)?;
    let mut spec = config(&["true"]);
    spec["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]});
    container.bundle.write_config(&spec)?;
    let mut run = kata(&["--debug", "run", "--bundle"]);
    let said = command::output(run.arg(&container.bundle.0).arg(&container.id))?.expect_code(0)?;
    if !said.stderr.contains("\"seccomp filter flags: 2\"") {
        bail!("its flags are not told: {}", said.stderr);
    }
    Ok(())
}

/// As systemd and container engines do: init in a cgroup of its own, and controllers for those beside it.
fn a_container_has_the_users_of_another_that_it_names(context: &Context) -> Result<()> {
    let mut spec = config(&["sh", "-c", WAITS]);
    let own = json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]);
    let with_users = |namespace: Value| {
        let mut namespaces = own.clone();
        if let Some(list) = namespaces.as_array_mut() {
            list.push(namespace);
        }
        namespaces
    };
    spec["linux"]["namespaces"] = with_users(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65534}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1000}]);
    let first = Container::of(context, &spec)?;
    first.run()?;
    let path = format!("/proc/{}/ns/user", first.pid()?);
    let mut spec = config(&["cat", "/proc/self/uid_map", "/proc/self/gid_map"]);
    spec["linux"]["namespaces"] = with_users(json!({"type": "user", "path": path}));
    let second = crate::bundle::Bundle::new(context, &[])?;
    second.write_config(&spec)?;
    let said = second.run()?.expect_code(0)?.text();
    let words: Vec<&str> = said.split_whitespace().collect();
    if words != ["0", "0", "65534", "0", "0", "1000"] {
        bail!("the second has {said:?}");
    }
    first.say("kill", &["KILL"])?.expect_code(0)?;
    first.wait_for_status("stopped")
}

fn an_exec_joins_an_init_that_made_a_tree_of_its_cgroup(context: &Context) -> Result<()> {
    let tree = "cd /sys/fs/cgroup && mkdir init && echo 1 > init/cgroup.procs && \
        echo +pids > cgroup.subtree_control || exit 9";
    let mut spec = config(&["sh", "-c", &format!("{tree}; {WAITS}")]);
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
    ]);
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    spec["linux"]["namespaces"] = json!(namespaces.map(|kind| json!({"type": kind})));
    let container = Container::of(context, &spec)?;
    container.run()?;
    let seen = container.say("exec", &["cat", "/proc/self/cgroup"])?.expect_code(0)?.text();
    if seen.trim() != "0::/init" {
        bail!("the exec is in {seen:?}");
    }
    let above = say(&["exec", "--cgroup", "/", &container.id, "true"])?;
    above.expect_error(&[" adding pid ", " to cgroups", "device or resource busy"])?;
    container.say("kill", &["KILL"])?.expect_code(0)?;
    container.wait_for_status("stopped")
}
