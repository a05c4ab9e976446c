//! A create, run or exec that fails: it says why, and leaves nothing.

use super::container::{Container, WAITS, kata, say};
use crate::bundle::config;
use crate::command::{self, DEADLINE};
use crate::context::Context;
use anyhow::{Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

crate::cases!(
    crate::Scope::Once;
    what_cannot_be_made_leaves_nothing,
    a_bundle_that_is_none_is_named;
    crate::Scope::AllOnce;
    a_full_disk_of_the_state_leaves_nothing,
    an_exec_whose_pid_file_cannot_be_written_is_ended,
);

const STATE: &str = "/run/kata-like-cli";

/// How a container is made: `{}` is the bundle.
const WAYS: [&[&str]; 3] =
    [&["create", "--bundle"], &["run", "--detach", "--bundle"], &["run", "--bundle"]];

fn what_cannot_be_made_leaves_nothing(context: &Context) -> Result<()> {
    for way in WAYS {
        let terminal = |way: &[&str]| way[0] == "create" || way[1] == "--detach";
        let container = Container::new(context, "true")?;
        // Each changes one thing; what is to be said comes last.
        let mut cases = vec![
            (config(&["nosuch"]), vec![], "executable file not found in $PATH"),
            (
                config(&["true"]),
                vec!["--pid-file", "/nowhere/pid"],
                "write the pid file /nowhere/pid",
            ),
            (config(&["true"]), vec!["--pidfd-socket", "/nowhere/s"], "pidfd socket /nowhere/s"),
            (config(&["true"]), vec!["--preserve-fds", "1"], "--preserve-fds"),
            (with(|c| c["root"]["path"] = json!("nowhere")), vec![], "nowhere"),
            (
                with(
                    |c| c["mounts"] = json!([{"destination": "/x", "type": "bind", "source": "/no/source", "options": ["bind"]}]),
                ),
                vec![],
                "/no/source",
            ),
            (
                with(|c| c["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]})),
                vec![],
                "error running createRuntime hook #0: /bin/false",
            ),
            (with(|c| c["linux"]["intelRdt"] = json!({"closID": "x"})), vec![], "intelRdt"),
        ];
        if terminal(way) {
            cases.push((
                with(|c| c["process"]["terminal"] = json!(true)),
                vec!["--console-socket", "/nowhere/c"],
                "console socket /nowhere/c",
            ));
        }
        let socket = if terminal(way) { "cannot use console socket" } else { "will not detach" };
        cases.push((config(&["true"]), vec!["--console-socket", "/nowhere/c"], socket));
        for (config, options, words) in cases {
            container.bundle.write_config(&config)?;
            let mut command = kata(way);
            command.arg(&container.bundle.0).args(options).arg(&container.id);
            fails(&container, &mut command, words)?;
            nothing_left(&container, Path::new(STATE))?;
        }
    }
    Ok(())
}

fn with(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
    let mut config = config(&["sh", "-c", WAITS]);
    change(&mut config);
    config
}

/// Its output goes to a file: what is left in the background would hold a pipe open.
fn fails(container: &Container, command: &mut Command, words: &str) -> Result<()> {
    let out = File::create(container.file("out"))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let mut child = command.spawn()?;
    let status = command::wait_until(&mut child, std::time::Instant::now() + DEADLINE)?;
    let said = fs::read_to_string(container.file("out"))?;
    match status {
        Some(status) if !status.success() && said.contains(words) => Ok(()),
        status => bail!("{command:?} ended with {status:?}, wanted {words:?}: {said:?}"),
    }
}

fn nothing_left(container: &Container, root: &Path) -> Result<()> {
    let id = &container.id;
    if root.join(id).exists() || Path::new("/var/lib/kata-like/run").join(id).exists() {
        bail!("a directory of {id} is left");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.contains(id.as_str()) && !root.to_string_lossy().contains(id.as_str()) {
        bail!("a mount of {id} is left: {mounts}");
    }
    command::eventually(&format!("no process of {id} is left"), DEADLINE, || {
        let ours = |process: &PathBuf| {
            let program = fs::read_link(process.join("exe")).unwrap_or_default();
            program.to_string_lossy().contains("/kata-like")
        };
        let processes = fs::read_dir("/proc")?.flatten().map(|process| process.path());
        let lines = processes.filter(ours).filter_map(|p| fs::read(p.join("cmdline")).ok());
        let mut left = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        Ok(!left.any(|line| line.contains(id.as_str())))
    })?;
    say(&["state", id])?.expect_error(&["does not exist"]).map(drop)
}

/// A small file system at `--root`; gone when dropped.
struct Small(PathBuf);

impl Small {
    fn new(at: PathBuf, size: &str) -> Result<Self> {
        fs::create_dir(&at)?;
        let options = format!("size={size}");
        mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn a_full_disk_of_the_state_leaves_nothing(context: &Context) -> Result<()> {
    for way in WAYS {
        let container = Container::new(context, WAITS)?;
        let root = Small::new(container.file("root"), "4k")?;
        fs::write(root.0.join("full"), [0; 4096])?;
        let mut command = kata(&["--root"]);
        command.arg(&root.0).args(way).arg(&container.bundle.0).arg(&container.id);
        fails(&container, &mut command, "No space left on device")?;
        nothing_left(&container, &root.0)?;
    }
    Ok(())
}

fn an_exec_whose_pid_file_cannot_be_written_is_ended(context: &Context) -> Result<()> {
    let container = Container::new(context, WAITS)?;
    container.run()?;
    for detach in [&["--detach"][..], &[]] {
        let mut exec = kata(&["exec", "--pid-file", "/nowhere/pid"]);
        exec.args(detach).args([&container.id, "sleep", "4711"]);
        fails(&container, &mut exec, "write the pid file /nowhere/pid")?;
        command::eventually("the process is gone", DEADLINE, || {
            Ok(!container.say("ps", &[])?.expect_code(0)?.text().contains("sleep 4711"))
        })?;
    }
    container.wait_for_status("running")
}

fn a_bundle_that_is_none_is_named(context: &Context) -> Result<()> {
    let container = Container::new(context, "true")?;
    for (text, words) in [
        ("{\"ociVersion\": ", "config.json"),
        ("null", "config.json"),
        ("{\"ociVersion\": \"1.0.0\"}", "no root"),
        ("{\"ociVersion\": \"1.0.0\", \"root\": {\"path\": \"rootfs\"}}", "process"),
    ] {
        fs::write(container.file("config.json"), text)?;
        for way in WAYS {
            let mut command = kata(way);
            command.arg(&container.bundle.0).arg(&container.id);
            fails(&container, &mut command, words)?;
            nothing_left(&container, Path::new(STATE))?;
        }
    }
    fs::remove_file(container.file("config.json"))?;
    for way in WAYS {
        let mut command = kata(way);
        command.arg(&container.bundle.0).arg(&container.id);
        fails(&container, &mut command, "JSON specification file config.json not found")?;
    }
    let mut image = kata(&["run", "--name", &container.id]);
    fails(&container, image.arg("/nowhere/image.tar"), "/nowhere/image.tar")?;
    nothing_left(&container, Path::new(STATE))
}
