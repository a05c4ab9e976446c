//! Any of the processes dies: the container is reported dead once, with a reason; all is cleaned up.

use crate::command::{self, DEADLINE};
use crate::confinement::pid_of;
use crate::context::{Container, Context};
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

crate::cases!(
    crate::Scope::OneOrEach;
    the_vmm_is_killed,
    the_shim_is_killed;
    crate::Scope::Once;
    the_file_server_is_killed,
    the_guest_kernel_panics,
    the_agent_is_killed;
    crate::Scope::AllEach;
    poststop_hooks_run_when_the_shim_was_killed,
);

/// `ctr events`, collected while a test runs.
struct Events {
    ctr: Child,
    text: Arc<Mutex<String>>,
}

impl Events {
    /// Starts to collect; an event of our own making shows that it has.
    fn watch(context: &Context, id: &str) -> Result<Self> {
        let mut ctr = context.ctr_command(&["events"]).stdout(Stdio::piped()).spawn()?;
        let mut stdout = ctr.stdout.take().context("stdout")?;
        let text = Arc::new(Mutex::new(String::new()));
        let shared = text.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut bytes) {
                if let Ok(mut text) = shared.lock() {
                    text.push_str(&String::from_utf8_lossy(&bytes[..n]));
                }
            }
        });
        let events = Self { ctr, text };
        command::eventually("ctr events shows an event", DEADLINE, || {
            context.ctr(&["container", "label", id, "watched=yes"])?.expect_code(0)?;
            Ok(events.text().contains("/containers/update"))
        })?;
        Ok(events)
    }

    fn text(&self) -> String {
        self.text.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Exit events of the container's init.
    fn exits(&self, id: &str) -> Vec<String> {
        let text = self.text();
        let init = format!("\"id\":\"{id}\"");
        let is_exit = |line: &&str| line.contains("/tasks/exit") && line.contains(&init);
        text.lines().filter(is_exit).map(str::to_owned).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}

fn kill_program(name: &str) -> Result<()> {
    Ok(kill(Pid::from_raw(pid_of(name)?.cast_signed()), Signal::SIGKILL)?)
}

/// Waits for a line of containerd's log with all these words, after so many bytes of it.
pub fn await_logged(context: &Context, mark: u64, words: &[&str]) -> Result<()> {
    command::eventually(&format!("a line of the log has all of {words:?}"), DEADLINE, || {
        let log = fs::read(context.containerd.log())?;
        let since = String::from_utf8_lossy(&log[usize::try_from(mark)?..]).into_owned();
        Ok(since.lines().any(|line| words.iter().all(|word| line.contains(word))))
    })
}

/// The container's death is one event with a non-zero status and a reason in the log; then life goes on.
fn dies(
    context: &Context,
    container: &Container,
    cause: impl FnOnce() -> Result<()>,
    reason: &[&str],
) -> Result<()> {
    let events = Events::watch(context, &container.id)?;
    let mark = fs::metadata(context.containerd.log())?.len();
    cause()?;
    container.await_status("STOPPED")?;
    if !reason.is_empty() {
        await_logged(context, mark, reason)?;
    }
    let code = container.exit_status()?;
    if code == 0 {
        bail!("a container that died with its machine has exit code 0");
    }
    command::eventually("an exit event", DEADLINE, || Ok(!events.exits(&container.id).is_empty()))?;
    context.container().output(&["echo", "next"])?.expect_code(0)?;
    let exits = events.exits(&container.id);
    if exits.len() != 1 {
        bail!("{} exit events: {exits:#?}", exits.len());
    }
    Ok(())
}

fn the_vmm_is_killed(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    dies(context, &container, || kill_program("kata-like-vmm"), &["VMM", "SIGKILL"])
}

fn the_file_server_is_killed(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    dies(context, &container, || kill_program("kata-like-fs"), &["file server", "SIGKILL"])
}

/// containerd itself notices, and calls `delete`; the VMM and the file server end with the shim.
fn the_shim_is_killed(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let events = Events::watch(context, &container.id)?;
    kill_program("containerd-shim-kata-like-v2")?;
    command::eventually("the task is gone or stopped", DEADLINE, || {
        Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
    })?;
    command::eventually("an exit event", DEADLINE, || Ok(!events.exits(&container.id).is_empty()))?;
    context.container().output(&["echo", "next"])?.expect_code(0)?;
    if events.exits(&container.id).len() != 1 {
        bail!("exit events: {:#?}", events.exits(&container.id));
    }
    drop(container);
    remove_fifos_of_ctr()
}

/// As on runc: by containerd's `delete`, and once.
fn poststop_hooks_run_when_the_shim_was_killed(context: &Context) -> Result<()> {
    let log = format!("/tmp/{}-hooks.log", context.fresh_id());
    let script = format!("(cat; echo) >> {log}");
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]});
    let change =
        |spec: &mut serde_json::Value| spec["hooks"] = serde_json::json!({"poststop": [hook]});
    with_spec(context, change, |container| {
        kill_program("containerd-shim-kata-like-v2")?;
        command::eventually("the task is gone or stopped", DEADLINE, || {
            Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
        })
    })?;
    let ran = fs::read_to_string(&log)?;
    if ran.lines().count() != 1 || !ran.contains("stopped") {
        bail!("the hook was told {ran:?}");
    }
    fs::remove_file(&log)?;
    remove_fifos_of_ctr()
}

/// `ctr run --detach` leaves the directory of its FIFOs to `ctr task delete`, which finds no task here.
///
/// # Errors
/// When something else lies there: who opens a FIFO that is gone must not make a file of it.
pub fn remove_fifos_of_ctr() -> Result<()> {
    // Not there before the first.
    for directory in fs::read_dir("/run/containerd/fifo").into_iter().flatten() {
        let directory = directory?.path();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if !path.symlink_metadata()?.file_type().is_fifo() {
                bail!("{} is no FIFO", path.display());
            }
            fs::remove_file(path)?;
        }
        fs::remove_dir(directory)?;
    }
    Ok(())
}

/// A privileged container asks for a panic on out-of-memory, and runs out of memory.
fn the_guest_kernel_panics(context: &Context) -> Result<()> {
    let container = context.container().flag("--privileged").detached(&["sleep", "100000"])?;
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; for i in 1 2 3 4; do tail -c 60000000 /dev/zero & done; wait";
    let cause = || {
        let mut exec = container.exec_command(&[], &["sh", "-c", script]);
        command::Running::start(&mut exec, Vec::new())?.finish(DEADLINE).map(drop)
    };
    dies(context, &container, cause, &["guest kernel panicked", "panic_on_oom"])
}

/// Hands a container in the guest's own pid namespace, which may look into the agent, to a test.
pub fn with_the_agent_in_view(
    context: &Context,
    test: impl FnOnce(&Container) -> Result<()>,
) -> Result<()> {
    let change = |spec: &mut serde_json::Value| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] =
                serde_json::json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        }
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    };
    with_spec(context, change, test)
}

/// Hands a container of busybox that sleeps, with a changed spec, to a test.
pub fn with_spec(
    context: &Context,
    change: impl FnOnce(&mut serde_json::Value),
    test: impl FnOnce(&Container) -> Result<()>,
) -> Result<()> {
    let path = format!("/tmp/{}.json", context.fresh_id());
    let made = context.ctr(&["oci", "spec"])?.expect_code(0)?.text();
    let mut spec: serde_json::Value = serde_json::from_str(&made)?;
    let rootfs = format!("/tmp/{}-rootfs", context.fresh_id());
    fs::create_dir_all(format!("{rootfs}/bin"))?;
    for directory in ["proc", "sys", "dev", "run"] {
        fs::create_dir(format!("{rootfs}/{directory}"))?;
    }
    fs::copy("/usr/bin/busybox", format!("{rootfs}/bin/sh"))?;
    fs::copy("/usr/bin/busybox", format!("{rootfs}/bin/busybox"))?;
    spec["root"] = serde_json::json!({"path": rootfs});
    spec["process"]["args"] = serde_json::json!(["busybox", "sleep", "100000"]);
    spec["process"]["env"] = serde_json::json!(["PATH=/bin"]);
    change(&mut spec);
    fs::write(&path, spec.to_string())?;
    let outcome = context.configured(&path).and_then(|container| test(&container));
    fs::remove_file(&path)?;
    fs::remove_dir_all(&rootfs)?;
    outcome
}

/// Its code is overwritten.
fn the_agent_is_killed(context: &Context) -> Result<()> {
    // Zeros over the page of code that /proc/1/syscall says the agent waits in, and all of its text.
    let script = "set -- $(busybox grep -m1 ' r-xp ' /proc/1/maps | busybox tr - ' '); \
        start=$((0x$1)); pages=$(( (0x$2 - 0x$1) / 4096 )); \
        busybox dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((start / 4096)) count=$pages conv=notrunc";
    with_the_agent_in_view(context, |container| {
        let cause = || {
            let mut exec = container.exec_command(&[], &["sh", "-c", script]);
            command::Running::start(&mut exec, Vec::new())?.finish(DEADLINE).map(drop)
        };
        dies(context, container, cause, &["guest kernel panicked", "Attempted to kill init"])
    })
}
