//! A pod, as `crictl` makes it.

use crate::command::{self, DEADLINE, Output};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use lab::containerd::IMAGE;
use lab::pods::CRICTL;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our handler's name in containerd's configuration.
pub const OURS: &str = "kata-like";

/// The one that is compared with.
pub const RUNC: &str = "runc";

/// A pod; removed with its containers when dropped.
pub struct Pod<'a> {
    context: &'a Context,
    /// Its id.
    pub id: String,
    name: String,
    directory: PathBuf,
    removed: bool,
}

/// A container of a pod's.
pub struct Member<'a> {
    pod: &'a Pod<'a>,
    /// Its id.
    pub id: String,
    name: String,
}

/// Runs `crictl ARGS…` against the containerd under test.
pub fn crictl(context: &Context, args: &[&str]) -> Result<Output> {
    command::output(&mut crictl_command(context, args))
}

/// The same, to be run.
pub fn crictl_command(context: &Context, args: &[&str]) -> Command {
    let socket = format!("unix://{}", context.containerd.address());
    let mut crictl = Command::new(CRICTL);
    crictl.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--timeout", "140s"]);
    // Elsewhere it looks for a configuration, and warns that it has none.
    crictl.args(["--config", "/dev/null"]).args(args);
    crictl
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, more) => *into = more.clone(),
    }
}

impl<'a> Pod<'a> {
    /// Runs one on a handler, with `more` in its configuration.
    pub fn run(context: &'a Context, handler: &str, more: &Value) -> Result<Self> {
        Self::run_limited(context, handler, more, None)
    }

    /// The same in a cgroup that may have so much memory, bytes.
    pub fn run_limited(
        context: &'a Context,
        handler: &str,
        more: &Value,
        memory: Option<u64>,
    ) -> Result<Self> {
        let name = context.fresh_id();
        let directory = Path::new("/tmp").join(&name);
        fs::create_dir_all(&directory)?;
        let mut pod = Self { context, id: String::new(), name, directory, removed: false };
        fs::create_dir(pod.cgroup())?;
        if let Some(bytes) = memory {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
            fs::write(pod.cgroup().join("memory.max"), bytes.to_string())?;
        }
        let mut config = json!({
            "metadata": {"name": pod.name, "namespace": "e2e", "uid": pod.name, "attempt": 0},
            "hostname": "in-a-pod", "dns_config": {"servers": ["127.0.0.1"]}, "log_directory": pod.directory,
            "linux": {"cgroup_parent": format!("/{}", pod.name)},
        });
        merge(&mut config, more);
        let file = pod.file();
        fs::write(&file, config.to_string())?;
        let output = crictl(context, &["runp", "--runtime", handler, &file])?.expect_code(0)?;
        pod.id = output.text();
        Ok(pod)
    }

    /// Where it runs.
    pub fn context(&self) -> &Context {
        self.context
    }

    /// The cgroup that its processes are to be below, as kubelet makes one.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.name)
    }

    /// Where its files are on the host.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self) -> String {
        self.directory.join("pod.json").display().to_string()
    }

    /// Creates a container that runs these arguments, with `more` in its configuration; what `crictl` says.
    pub fn create(&self, name: &str, args: &[&str], more: &Value) -> Result<Output> {
        let mut config = json!({
            "metadata": {"name": name}, "image": {"image": IMAGE}, "command": args,
            "log_path": format!("{name}.log"), "linux": {},
        });
        merge(&mut config, more);
        let file = self.directory.join(format!("{name}.json"));
        fs::write(&file, config.to_string())?;
        crictl(self.context, &["create", &self.id, &file.display().to_string(), &self.file()])
    }

    /// Creates a container, and starts it.
    pub fn start(&'a self, args: &[&str], more: &Value) -> Result<Member<'a>> {
        let name = self.context.fresh_id();
        let id = self.create(&name, args, more)?.expect_code(0)?.text();
        crictl(self.context, &["start", &id])?.expect_code(0)?;
        Ok(Member { pod: self, id, name })
    }

    /// A container that does nothing until it is killed.
    pub fn sleeper(&'a self) -> Result<Member<'a>> {
        self.start(&["sleep", "1000000"], &Value::Null)
    }

    /// What `crictl` says of its state.
    pub fn state(&self) -> Result<String> {
        let text = crictl(self.context, &["inspectp", &self.id])?.expect_code(0)?.text();
        let state = serde_json::from_str::<Value>(&text)?["status"]["state"].take();
        Ok(state.as_str().context("the pod's state")?.to_owned())
    }

    /// Stops and removes it, and all in it.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        crictl(self.context, &["stopp", &self.id])?.expect_code(0)?;
        crictl(self.context, &["rmp", &self.id])?.expect_code(0)?;
        fs::remove_dir_all(&self.directory)?;
        fs::remove_dir(self.cgroup()).context("the pod's cgroup")
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if !self.id.is_empty() {
            let _ = crictl(self.context, &["rmp", "--force", &self.id]);
        }
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir(self.cgroup());
    }
}

impl Member<'_> {
    /// Where it runs.
    pub fn context(&self) -> &Context {
        self.pod.context
    }

    /// Runs a shell's line in it; what it says.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = crictl(self.pod.context, &["exec", &self.id, "sh", "-c", line])?;
        Ok(output.expect_code(0).with_context(|| line.to_owned())?.text())
    }

    /// Waits until a shell's line in it says this.
    pub fn await_line(&self, line: &str, said: &str) -> Result<()> {
        let what = format!("{line} says {said:?}");
        command::eventually(&what, DEADLINE, || {
            let output = crictl(self.pod.context, &["exec", &self.id, "sh", "-c", line])?;
            Ok(output.text() == said)
        })
    }

    /// What it has written so far, without time and stream.
    pub fn log(&self) -> Result<String> {
        let text = fs::read_to_string(self.pod.directory.join(format!("{}.log", self.name)))?;
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// What `crictl inspect` says of its status.
    pub fn status(&self) -> Result<Value> {
        let text = crictl(self.pod.context, &["inspect", &self.id])?.expect_code(0)?.text();
        Ok(serde_json::from_str::<Value>(&text)?["status"].take())
    }

    /// Waits until it has ended; its exit code.
    pub fn ended(&self) -> Result<i64> {
        let mut status = Value::Null;
        command::eventually("the container has ended", DEADLINE, || {
            status = self.status()?;
            Ok(status["state"] == "CONTAINER_EXITED")
        })?;
        status["exitCode"].as_i64().context("its exit code")
    }

    /// Stops it at once, and removes it.
    pub fn remove(self) -> Result<()> {
        let context = self.pod.context;
        crictl(context, &["stop", "--timeout", "0", &self.id])?.expect_code(0)?;
        let output = crictl(context, &["rm", &self.id])?.expect_code(0)?;
        if output.text().is_empty() {
            bail!("crictl rm says nothing");
        }
        Ok(())
    }
}
