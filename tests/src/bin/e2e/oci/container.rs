//! A container of the command line.

use crate::bundle::{Bundle, config};
use crate::command::{self, DEADLINE, Output};
use crate::context::Context;
use anyhow::{Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Runs until it is asked to end.
pub const WAITS: &str = "trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.1; done";

/// The command line.
pub fn kata(args: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/kata-like");
    command.args(args);
    command
}

/// What it says.
pub fn say(args: &[&str]) -> Result<Output> {
    command::output(&mut kata(args))
}

/// Of a bundle; removed when dropped, if it is there.
pub struct Container {
    pub bundle: Bundle,
    pub id: String,
}

impl Container {
    pub fn of(context: &Context, config: &Value) -> Result<Self> {
        let bundle = Bundle::new(context, &["true"])?;
        bundle.write_config(config)?;
        Ok(Self { bundle, id: context.fresh_id() })
    }

    /// Of a script for sh.
    pub fn new(context: &Context, script: &str) -> Result<Self> {
        Self::of(context, &config(&["sh", "-c", script]))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.bundle.0.join(name)
    }

    /// The command `create` with its output going to the file `out`.
    pub fn create_command(&self) -> Result<Command> {
        let mut create = kata(&["create", "--pid-file"]);
        create.arg(self.file("pid")).arg("--bundle").arg(&self.bundle.0).arg(&self.id);
        let out = File::create(self.file("out"))?;
        create.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(create)
    }

    pub fn create(&self) -> Result<()> {
        let status = self.create_command()?.status()?;
        if !status.success() {
            bail!("create: {status}: {}", fs::read_to_string(self.file("out"))?);
        }
        Ok(())
    }

    pub fn run(&self) -> Result<()> {
        self.create()?;
        self.say("start", &[])?.expect_code(0)?;
        self.wait_for_output("up")
    }

    pub fn say(&self, command: &str, more: &[&str]) -> Result<Output> {
        say(&[&[command, &self.id], more].concat())
    }

    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.say("state", &[])?.expect_code(0)?.text())?)
    }

    pub fn wait_for_output(&self, what: &str) -> Result<()> {
        command::eventually(what, DEADLINE, || {
            Ok(fs::read_to_string(self.file("out"))?.contains(what))
        })
    }

    pub fn wait_for_status(&self, status: &str) -> Result<()> {
        command::eventually(status, DEADLINE, || Ok(self.state()?["status"] == status))
    }

    pub fn pid(&self) -> Result<i32> {
        Ok(fs::read_to_string(self.file("pid"))?.parse()?)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = kata(&["delete", "--force", &self.id]).status();
    }
}
