//! What a test has at hand: a containerd, and short words for what a person does with `ctr`.

use crate::command::{self, DEADLINE, Output, Running};
use crate::containerd_api as api;
use crate::leaks;
use anyhow::{Result, bail};
use lab::containerd::{IMAGE, Version};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Our runtime, as containerd names it.
pub const RUNTIME: &str = "io.containerd.kata-like.v2";

/// The containerd and the runtime under test.
pub struct Context {
    /// The containerd.
    pub containerd: Version,
    /// The runtime.
    pub runtime: String,
    /// Where logs of failed tests are kept.
    pub artifacts: PathBuf,
    /// How many containers a test of many makes, and how often one that waits for a race tries: 3 in `make test`; 30 is
    /// a night's work.
    pub many: u32,
    next: AtomicU32,
}

impl Context {
    /// A context; nothing is started.
    pub fn new(containerd: Version, runtime: &str, artifacts: &Path, many: u32) -> Self {
        let next = AtomicU32::new(1);
        Self { containerd, runtime: runtime.into(), artifacts: artifacts.into(), many, next }
    }

    /// Removes what a run of these tests that was broken off left in containerd, and shims that it has forgotten.
    pub fn sweep(&self) -> Result<()> {
        let containers = api::containers(self.containerd)?;
        for id in containers.into_iter().filter(|id| id.starts_with("e2e-")) {
            drop(Container::new(self, id));
        }
        leaks::end_shims_of_tests()
    }

    /// An id that no other container of this run has.
    pub fn fresh_id(&self) -> String {
        format!("e2e-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// `ctr ARGS…`, to be run.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut ctr = self.containerd.ctr();
        ctr.args(args);
        ctr
    }

    /// Runs `ctr ARGS…` to its end.
    pub fn ctr(&self, args: &[&str]) -> Result<Output> {
        command::output(&mut self.ctr_command(args))
    }

    /// A container to be run from the test image.
    pub fn container(&self) -> Run<'_> {
        Run {
            context: self,
            id: self.fresh_id(),
            flags: Vec::new(),
            source: IMAGE.into(),
            stdin: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// A container that sleeps until it is killed, running in the background.
    pub fn sleeper(&self) -> Result<Container<'_>> {
        self.container().detached(&["sleep", "1000000"])
    }

    /// A container from an OCI configuration file that names its own rootfs, in the background.
    pub fn configured(&self, config: &str) -> Result<Container<'_>> {
        let container = Container::new(self, self.fresh_id());
        let args =
            ["run", "--runtime", &self.runtime, "--detach", "--config", config, &container.id];
        self.ctr(&args)?.expect_code(0)?;
        Ok(container)
    }
}

/// `ctr run`, being put together.
pub struct Run<'a> {
    context: &'a Context,
    id: String,
    flags: Vec<String>,
    source: String,
    stdin: Vec<u8>,
    deadline: Duration,
}

impl<'a> Run<'a> {
    /// One more flag of `ctr run`.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Standard input of the container.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A directory instead of the test image.
    pub fn rootfs(mut self, path: &str) -> Self {
        self.source = path.into();
        self.flag("--rootfs")
    }

    /// The command line for `args`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut ctr = self.context.ctr_command(&["run", "--runtime", &self.context.runtime]);
        ctr.args(&self.flags).arg(&self.source).arg(&self.id).args(args);
        ctr
    }

    /// Runs it to its end, and removes it.
    pub fn output(self, args: &[&str]) -> Result<Output> {
        self.start(args)?.finish(DEADLINE)
    }

    /// Starts it in the foreground, removed at its end.
    pub fn start(mut self, args: &[&str]) -> Result<Running> {
        self.flags.insert(0, "--rm".into());
        let mut command = self.command(args);
        Running::start(&mut command, self.stdin)
    }

    /// Starts it in the background.
    pub fn detached(mut self, args: &[&str]) -> Result<Container<'a>> {
        self.flags.push("--detach".into());
        // With --detach ctr leaves its own standard streams to the container.
        let mut command = self.command(args);
        let container = Container::new(self.context, self.id);
        let output = Running::start(&mut command, self.stdin)?.finish(self.deadline)?;
        output.expect_code(0)?;
        Ok(container)
    }
}

/// A container in the background; killed and removed when dropped.
pub struct Container<'a> {
    context: &'a Context,
    /// Its id.
    pub id: String,
    removed: bool,
}

impl<'a> Container<'a> {
    fn new(context: &'a Context, id: String) -> Self {
        Self { context, id, removed: false }
    }

    /// `ctr task VERB … ID ARGS…`.
    pub fn task(&self, verb: &[&str], args: &[&str]) -> Result<Output> {
        let mut all = vec!["task"];
        all.extend(verb);
        all.push(&self.id);
        all.extend(args);
        self.context.ctr(&all)
    }

    /// `ctr task exec`, to be run.
    pub fn exec_command(&self, flags: &[&str], args: &[&str]) -> Command {
        let exec_id = self.context.fresh_id();
        let mut ctr = self.context.ctr_command(&["task", "exec", "--exec-id", &exec_id]);
        ctr.args(flags).arg(&self.id).args(args);
        ctr
    }

    /// Runs a process in it.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        command::output(&mut self.exec_command(&[], args))
    }

    /// Runs a process in it with this standard input.
    pub fn exec_with_stdin(&self, stdin: impl Into<Vec<u8>>, args: &[&str]) -> Result<Output> {
        Running::start(&mut self.exec_command(&[], args), stdin.into())?.finish(DEADLINE)
    }

    /// `ctr task kill -s SIGNAL`.
    pub fn kill(&self, signal: &str) -> Result<Output> {
        self.task(&["kill", "-s", signal], &[])
    }

    /// RUNNING, STOPPED, … as `ctr task ls` has it; `None` when there is no such task.
    pub fn status(&self) -> Result<Option<String>> {
        let tasks = api::tasks(self.context.containerd)?;
        Ok(tasks.into_iter().find(|(id, _)| *id == self.id).map(|(_, status)| status))
    }

    /// Waits until its status is this.
    pub fn await_status(&self, status: &str) -> Result<()> {
        let what = format!("{} is {status}", self.id);
        command::eventually(&what, DEADLINE, || Ok(self.status()?.as_deref() == Some(status)))
    }

    /// `ctr task delete`.
    pub fn delete_task(&self) -> Result<Output> {
        self.task(&["delete"], &[])
    }

    /// `ctr task delete` of a stopped task, and the exit status that it tells of.
    pub fn exit_status(&self) -> Result<i32> {
        let output = self.delete_task()?;
        // ctr exits with the task's status, or (with some versions) 0 and a warning that names it.
        let told = output.stderr.split("exit code ").nth(1).and_then(|rest| {
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
        });
        Ok(told.unwrap_or(output.code))
    }

    /// Waits until a file is there in the container.
    pub fn await_file(&self, path: &str) -> Result<()> {
        let what = format!("{path} in {}", self.id);
        command::eventually(&what, DEADLINE, || Ok(self.exec(&["test", "-e", path])?.code == 0))
    }

    /// Kills it, removes it, and says how that went.
    pub fn remove(mut self) -> Result<()> {
        api::kill(self.context.containerd, &self.id, Signal::SIGKILL as u32)?;
        self.await_status("STOPPED")?;
        // By `ctr`, which made them: the FIFOs and the snapshot go, too.
        self.delete_task()?;
        self.context.ctr(&["container", "delete", &self.id])?.expect_code(0)?;
        self.removed = true;
        if self.status()?.is_some() {
            bail!("{} is still there", self.id);
        }
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if self.status().is_ok_and(|status| status.is_some()) {
            let _ = self.task(&["delete", "--force"], &[]);
        }
        let _ = self.context.ctr(&["container", "delete", &self.id]);
    }
}
