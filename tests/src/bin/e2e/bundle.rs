//! A bundle with busybox in it, and runtimes to run it with.

use crate::command::{self, Output, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A bundle with busybox in it; removed when dropped.
pub struct Bundle(pub PathBuf);

impl Bundle {
    /// One whose process has these arguments.
    pub fn new(context: &Context, args: &[&str]) -> Result<Self> {
        let directory = PathBuf::from(format!("/var/tmp/{}-bundle", context.fresh_id()));
        let bin = directory.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        for name in ["proc", "sys", "dev", "tmp"] {
            fs::create_dir(directory.join("rootfs").join(name))?;
        }
        fs::copy("/usr/bin/busybox", bin.join("busybox"))?;
        let list = command::output(Command::new("/usr/bin/busybox").arg("--list"))?.text();
        for applet in list.lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        let bundle = Self(directory);
        bundle.write_config(&config(args))?;
        Ok(bundle)
    }

    /// Replaces its `config.json`.
    pub fn write_config(&self, config: &Value) -> Result<()> {
        Ok(fs::write(self.0.join("config.json"), config.to_string())?)
    }

    /// Runs it in a machine of its own.
    pub fn run(&self) -> Result<Output> {
        self.run_within(command::DEADLINE)
    }

    /// As [`Bundle::run`], with more time.
    pub fn run_within(&self, deadline: Duration) -> Result<Output> {
        let mut run = Command::new("/usr/bin/kata-like");
        Running::start(run.arg("run").arg(&self.0), Vec::new())?.finish(deadline)
    }

    /// Runs it on the host.
    pub fn run_on_the_host(&self, runtime: &str) -> Result<Output> {
        command::output(&mut self.run_command(runtime)?)
    }

    /// `RUNTIME run`, to be run.
    pub fn run_command(&self, runtime: &str) -> Result<Command> {
        let id = self.0.file_name().context("a bundle has a name")?;
        let mut run = Command::new(runtime);
        run.arg("run").arg("--bundle").arg(&self.0).arg(id);
        Ok(run)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A container in the background, by the command line of a runtime: ours, or the one that it is held against.
pub struct Background<'a> {
    runtime: &'static str,
    bundle: &'a Bundle,
    id: String,
}

impl<'a> Background<'a> {
    /// Runs the bundle.
    pub fn run(context: &Context, runtime: &'static str, bundle: &'a Bundle) -> Result<Self> {
        let container = Self::of(context, runtime, bundle);
        container.begin("run", &["--detach"])?;
        Ok(container)
    }

    /// One that nothing has made yet.
    pub fn of(context: &Context, runtime: &'static str, bundle: &'a Bundle) -> Self {
        Self { runtime, bundle, id: context.fresh_id() }
    }

    /// `RUNTIME run|create --bundle DIR ID`; its standard streams stay with the container, and so go nowhere.
    pub fn begin(&self, verb: &str, flags: &[&str]) -> Result<()> {
        let mut begin = Command::new(self.runtime);
        let said = self.bundle.0.join("said");
        let out = fs::File::create(&said)?;
        begin.arg(verb).args(flags).arg("--bundle").arg(&self.bundle.0).arg(&self.id);
        begin.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let status = begin.status().with_context(|| self.runtime.to_owned())?;
        if !status.success() {
            bail!("{} {verb}: {status}: {}", self.runtime, fs::read_to_string(said)?);
        }
        Ok(())
    }

    /// `RUNTIME VERB FLAGS… ID ARGS…`.
    pub fn command(&self, verb: &str, flags: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(self.runtime);
        command.arg(verb).args(flags).arg(&self.id).args(args);
        command
    }

    /// Runs it to its end.
    pub fn say(&self, verb: &str, args: &[&str]) -> Result<Output> {
        command::output(&mut self.command(verb, &[], args))
    }

    /// Waits until its state says so.
    pub fn await_status(&self, status: &str) -> Result<()> {
        command::eventually(status, command::DEADLINE, || {
            let state: Value =
                serde_json::from_str(&self.say("state", &[])?.expect_code(0)?.text())?;
            Ok(state["status"] == status)
        })
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        let _ = command::output(&mut self.command("delete", &["--force"], &[]));
    }
}

/// The least that the OCI runtime-spec asks of a Linux container, and its usual mounts.
pub fn config(args: &[&str]) -> Value {
    let namespaces = ["pid", "mount", "uts", "ipc"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "hostname": "bundle",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces.map(|kind| json!({"type": kind}))},
    })
}
