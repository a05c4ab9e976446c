//! A bundle with busybox in it, and runtimes to run it with.

use crate::command::{self, Output, Running};
use crate::context::Context;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
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
        let id = self.0.file_name().context("a bundle has a name")?;
        command::output(Command::new(runtime).arg("run").arg("--bundle").arg(&self.0).arg(id))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The least that the OCI runtime-spec asks of a Linux container, and its usual mounts.
pub fn config(args: &[&str]) -> Value {
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
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]},
    })
}
