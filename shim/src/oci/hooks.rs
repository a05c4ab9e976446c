//! Hooks of the OCI runtime-spec (config.md, POSIX-platform Hooks) that run on the host.
//!
//! They run in the namespaces and with the rights of this process, have the container's state on standard
//! input, and nothing of this process's environment. Those of createContainer, which are a container's but for their
//! programs, begin in its root file system as it is shown to the guest, which sees what they mount there, and are in its
//! network namespace.

use crate::error::{Error, Result};
use crate::host::blocking::blocking;
use crate::host::limits;
use crate::host::network::Namespace;
use crate::host::persist::ProcessId;
use crate::host::replace::replace;
use crate::oci::bundle::read_spec;
use oci_spec::runtime::{ContainerState, Hook, Hooks, StateBuilder};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, Command};
use tokio::runtime::Handle;

/// Most of a hook's standard error that is kept and told, bytes.
const MAX_TOLD: u64 = 4096;

/// A container's hooks, and what they are told of it.
#[derive(Debug, Clone, Default)]
pub struct ContainerHooks {
    /// From its `config.json`.
    pub hooks: Hooks,
    /// Its id.
    pub id: String,
    /// The host process that stands for it; of no meaning when it has stopped.
    pub pid: u32,
    /// The directory of its `config.json`.
    pub bundle: PathBuf,
    /// From its `config.json`.
    pub annotations: HashMap<String, String>,
    /// Whether its bundle tells others that the poststop hooks are to be run, see [`run_left`].
    pub noted: bool,
}

/// What of a container's createContainer hooks find around them.
#[derive(Debug)]
pub struct Inside {
    /// Its root file system.
    pub root: PathBuf,
    /// Its network namespace, where it has one on the host.
    pub network: Option<Arc<Namespace>>,
}

/// In the bundle as long as poststop hooks are to be run: which process is to run them. Who removes it does.
const DUE: &str = "kata-like-poststop";

impl ContainerHooks {
    /// Before the container's first process is made.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] names the first that fails, the others are not run.
    pub async fn creating(&self) -> Result<()> {
        if self.noted && self.has_poststop() {
            let due = self.bundle.join(DUE);
            let note = move || {
                let own = serde_json::to_vec(&ProcessId::own()?).map_err(std::io::Error::other);
                own.and_then(|own| replace(&due, &own)).map_err(Error::path("write", &due))
            };
            blocking("note the hooks in", &self.bundle, note).await?;
        }
        #[allow(deprecated)] // And still in use.
        let prestart = self.hooks.prestart().as_ref();
        run("prestart", prestart, ContainerState::Creating, self, None).await?;
        let create_runtime = self.hooks.create_runtime().as_ref();
        run("createRuntime", create_runtime, ContainerState::Creating, self, None).await
    }

    /// When what the container's first process is to find is there, before it is made.
    ///
    /// # Errors
    /// As [`Self::creating`].
    pub async fn inside(&self, inside: &Inside) -> Result<()> {
        let create_container = self.hooks.create_container().as_ref();
        run("createContainer", create_container, ContainerState::Creating, self, Some(inside)).await
    }

    /// Whether there are any for [`Self::creating`].
    pub fn has_before(&self) -> bool {
        #[allow(deprecated)] // And still in use.
        let lists = [self.hooks.prestart(), self.hooks.create_runtime()];
        lists.into_iter().flatten().any(|list| !list.is_empty())
    }

    /// Whether there are any for [`Self::inside`].
    pub fn has_inside(&self) -> bool {
        self.hooks.create_container().as_ref().is_some_and(|list| !list.is_empty())
    }

    /// When the container's first process has been let go.
    ///
    /// # Errors
    /// As [`Self::creating`].
    pub async fn started(&self) -> Result<()> {
        let poststart = self.hooks.poststart().as_ref();
        run("poststart", poststart, ContainerState::Running, self, None).await
    }

    fn has_poststop(&self) -> bool {
        self.hooks.poststop().as_ref().is_some_and(|list| !list.is_empty())
    }

    /// When the container is gone; a failure is logged.
    pub async fn gone(&self) {
        if self.noted && self.has_poststop() {
            let due = self.bundle.join(DUE);
            let claim = move || std::fs::remove_file(&due).map_err(Error::path("remove", &due));
            // Without it somebody else has run them.
            if let Err(error) = blocking("take the note out of", &self.bundle, claim).await {
                tracing::warn!("container {}: no poststop hooks: {}", self.id, error.chain());
                return;
            }
        }
        let poststop = self.hooks.poststop().as_ref();
        for hook in poststop.into_iter().flatten() {
            let one = vec![hook.clone()];
            let stopped = ContainerState::Stopped;
            if let Err(error) = run("poststop", Some(&one), stopped, self, None).await {
                tracing::warn!("container {}: {error}", self.id);
            }
        }
    }
}

/// Runs the poststop hooks that a process has left which was killed, for container `id`; it may be on its way out
/// for as long as `patience`.
///
/// # Errors
/// They can't be read.
pub async fn run_left(bundle: &Path, id: &str, patience: Duration) -> Result<()> {
    let due = bundle.join(DUE);
    let Ok(note) = std::fs::read(&due) else { return Ok(()) };
    let whose: std::io::Result<ProcessId> = serde_json::from_slice(&note).map_err(Into::into);
    if !whose.map_err(Error::path("parse", &due))?.wait(patience) {
        return Ok(());
    }
    let spec = read_spec(bundle)?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    let hooks = spec.hooks().clone().unwrap_or_default();
    let (id, bundle) = (id.to_owned(), bundle.to_owned());
    ContainerHooks { hooks, id, pid: 0, bundle, annotations, noted: true }.gone().await;
    Ok(())
}

async fn run(
    kind: &str,
    hooks: Option<&Vec<Hook>>,
    status: ContainerState,
    of: &ContainerHooks,
    inside: Option<&Inside>,
) -> Result<()> {
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        let failed = |why: String| {
            let path = hook.path().display();
            // As runc says it.
            Error::FailedPrecondition(format!("error running {kind} hook #{index}: {path}: {why}"))
        };
        let state = state(status, of).map_err(|e| failed(e.to_string()))?;
        let outcome = match hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()) {
            Some(seconds) => {
                tokio::time::timeout(Duration::from_secs(seconds), run_one(hook, &state, inside))
                    .await
                    .unwrap_or_else(|_| Err(format!("not done within {seconds} s")))
            }
            None => run_one(hook, &state, inside).await,
        };
        outcome.map_err(failed)?;
    }
    Ok(())
}

fn state(
    status: ContainerState,
    of: &ContainerHooks,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut state = StateBuilder::default()
        .version("1.2.0")
        .id(of.id.clone())
        .status(status)
        .bundle(of.bundle.clone())
        .annotations(of.annotations.clone());
    if status != ContainerState::Stopped {
        state = state.pid(of.pid as i32);
    }
    Ok(serde_json::to_vec(&state.build()?)?)
}

/// Dropped at a timeout, which kills it.
async fn run_one(hook: &Hook, state: &[u8], inside: Option<&Inside>) -> Result<(), String> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    let variables = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(variables).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    limits::pass_on(&mut command);
    let mut network = None;
    if let Some(inside) = inside {
        command.current_dir(&inside.root);
        network.clone_from(&inside.network);
    }
    // To execute a program on a file system that hangs waits for it.
    let spawn = move || {
        let runtime = Handle::current();
        let mut spawn = || {
            let _entered = runtime.enter();
            command.spawn().map_err(Error::system("start it"))
        };
        match network {
            // A child is where the thread is that makes it.
            Some(network) => network.within(spawn)?,
            None => spawn(),
        }
    };
    let mut child = blocking("hook", hook.path(), spawn).await.map_err(|e| e.chain())?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    // Both at once: one may speak before it listens.
    let (said, ()) = tokio::join!(read_told(stderr), async {
        if let Some(mut stdin) = stdin {
            // One that does not read it is free to.
            let _ = stdin.write_all(state).await;
        }
    });
    let status = child.wait().await.map_err(|e| e.to_string())?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}: {}", String::from_utf8_lossy(&said).trim()))
}

/// Reads to the end, and keeps what is told.
async fn read_told(stderr: Option<ChildStderr>) -> Vec<u8> {
    let mut said = Vec::new();
    if let Some(mut stderr) = stderr {
        let _ = (&mut stderr).take(MAX_TOLD).read_to_end(&mut said).await;
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn outcome(hooks: serde_json::Value) -> Result<()> {
        let hooks = serde_json::from_value(json!({"prestart": hooks})).unwrap();
        let annotations = [("a".to_owned(), "b".to_owned())].into();
        let (id, bundle) = ("c1".into(), "/bundle".into());
        ContainerHooks { hooks, id, pid: 7, bundle, annotations, noted: false }.creating().await
    }

    #[tokio::test]
    async fn hooks_of_create_container_are_in_its_root_and_its_network() {
        let dir = tempfile::tempdir().unwrap();
        let space = crate::host::network::testing::Space::new();
        let hooks = json!({"createContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", "readlink /proc/self/ns/net > here; cat >> here"],
             "env": ["PATH=/usr/bin:/bin"]},
            {"path": "/bin/false"}]});
        let hooks = ContainerHooks {
            hooks: serde_json::from_value(hooks).unwrap(),
            id: "c1".into(),
            ..ContainerHooks::default()
        };
        let network = Some(space.namespace().clone());
        let inside = Inside { root: dir.path().to_owned(), network };
        let error = hooks.inside(&inside).await.unwrap_err().to_string();
        assert!(error.contains("error running createContainer hook #1: /bin/false"), "{error}");
        let told = std::fs::read_to_string(dir.path().join("here")).unwrap();
        let network = format!("net:[{}]", space.namespace().identity().1);
        assert!(told.starts_with(&network) && told.contains("\"creating\""), "{told}");
    }

    #[tokio::test]
    async fn a_hook_has_the_state_its_arguments_and_its_environment_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("said");
        let script = "cat > $FILE; echo \" $0 $1 ${HOME-none}\" >> $FILE";
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"],
            "env": [format!("FILE={}", file.display())]}]);
        outcome(hook).await.unwrap();
        let said = std::fs::read_to_string(file).unwrap();
        let (state, rest) = said.trim_end().split_once("} ").unwrap();
        let state: serde_json::Value = serde_json::from_str(&format!("{state}}}")).unwrap();
        assert_eq!(state["id"], "c1");
        assert_eq!((&state["pid"], &state["status"]), (&json!(7), &json!("creating")));
        assert_eq!(
            (&state["bundle"], &state["annotations"]["a"]),
            (&json!("/bundle"), &json!("b"))
        );
        assert_eq!(rest, "zero one none");
    }

    #[tokio::test]
    async fn all_poststop_hooks_run_and_are_told_of_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("said");
        let sh = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let tell = sh(&format!("cat > {}", file.display()));
        let hooks = serde_json::from_value(json!({"poststop": [sh("false"), tell]})).unwrap();
        ContainerHooks { hooks, id: "c1".into(), pid: 7, ..ContainerHooks::default() }.gone().await;
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(null)));
    }

    /// A bundle whose poststop hook writes to a file `said`.
    fn noted(dir: &Path) -> ContainerHooks {
        let script = format!("cat >> {0}; echo >> {0}", dir.join("said").display());
        let hooks = json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
        let spec = json!({"ociVersion": "1.2.0", "annotations": {"a": "b"}, "hooks": hooks});
        std::fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        let hooks = serde_json::from_value(hooks).unwrap();
        ContainerHooks { hooks, bundle: dir.into(), noted: true, ..ContainerHooks::default() }
    }

    #[tokio::test]
    async fn poststop_hooks_of_one_that_was_killed_run_once() {
        let dir = tempfile::tempdir().unwrap();
        let said = || std::fs::read_to_string(dir.path().join("said")).unwrap_or_default();
        let left = || run_left(dir.path(), "c1", Duration::ZERO);
        let hooks = noted(dir.path());
        left().await.unwrap();
        hooks.creating().await.unwrap();
        // Of one that lives they are not left.
        left().await.unwrap();
        assert_eq!(said(), "");
        let mut dead = std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let of_dead = ProcessId::of(dead.id() as i32).unwrap();
        dead.kill().unwrap();
        dead.wait().unwrap();
        let due = dir.path().join(DUE);
        std::fs::write(&due, serde_json::to_vec(&of_dead).unwrap()).unwrap();
        left().await.unwrap();
        left().await.unwrap();
        hooks.gone().await;
        let state: serde_json::Value = serde_json::from_str(&said()).unwrap();
        assert_eq!((&state["status"], &state["id"]), (&json!("stopped"), &json!("c1")));
        assert_eq!(state["annotations"]["a"], "b");
        std::fs::write(&due, "{").unwrap();
        assert!(left().await.unwrap_err().to_string().contains(DUE));
    }

    #[tokio::test]
    async fn what_the_living_one_has_run_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = noted(dir.path());
        hooks.creating().await.unwrap();
        assert!(dir.path().join(DUE).exists());
        hooks.gone().await;
        assert!(!dir.path().join(DUE).exists() && dir.path().join("said").exists());
    }

    #[tokio::test]
    async fn the_first_that_fails_is_named_and_ends_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let never = dir.path().join("never");
        let sh = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let touch = sh(&format!("touch {}", never.display()));
        let error =
            outcome(json!([sh("true"), sh("echo why >&2; exit 3"), touch])).await.unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("error running prestart hook #1: ") && error.contains("why"),
            "{error}"
        );
        assert!(!never.exists());
        let error = outcome(json!([{"path": "/no/such"}])).await.unwrap_err().to_string();
        assert!(error.contains("/no/such"), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed() {
        let sleep = json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]);
        let error = outcome(sleep).await.unwrap_err().to_string();
        assert!(error.contains("not done within 1 s"), "{error}");
    }

    #[tokio::test]
    async fn one_that_says_much_before_it_reads_its_state_ends_and_is_told_in_part() {
        let script = "head -c 300000 /dev/zero | tr '\\0' x >&2; wc -c >&2; exit 3";
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        let hooks = serde_json::from_value(json!({"prestart": hook})).unwrap();
        let annotations = [("a".to_owned(), "b".repeat(300_000))].into();
        let hooks = ContainerHooks { hooks, annotations, ..ContainerHooks::default() };
        let outcome = tokio::time::timeout(Duration::from_secs(20), hooks.creating()).await;
        let error = outcome.expect("neither waits for the other").unwrap_err().to_string();
        assert!(error.contains("exit status: 3: xxx") && error.len() < 5000, "{}", error.len());
    }
}
