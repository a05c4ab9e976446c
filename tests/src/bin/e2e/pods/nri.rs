//! Plugins of the node's, which containerd asks by NRI: what they are told of our pods, and what they change of containers.

use super::pod::{OURS, Pod, RUNC};
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use lab::pods::{NRI_PLUGIN, NRI_PLUGIN_DIR};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

crate::cases!(
    crate::Scope::AllNewest;
    what_a_plugin_changes_of_a_container_it_has,
);

/// The newest containerd's, as it is by default.
const SOCKET: &str = "/run/nri/nri.sock";

/// What the plugin has noted.
struct Notes(PathBuf);

impl Notes {
    fn all(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.0)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The one of this event and pod.
    fn of(&self, event: &str, pod: &Pod) -> Result<Value> {
        let is_it = |note: &Value| note["event"] == event && note["pod"]["id"] == *pod.id;
        self.all()?.into_iter().find(is_it).with_context(|| format!("no {event} was told"))
    }
}

fn what_a_plugin_changes_of_a_container_it_has(context: &Context) -> Result<()> {
    let notes = Notes(Path::new("/tmp").join(context.fresh_id()));
    fs::write(&notes.0, "")?;
    let mut plugin = Command::new(Path::new(NRI_PLUGIN_DIR).join(NRI_PLUGIN.name));
    let plugin = Running::start(plugin.arg(SOCKET).arg(&notes.0), Vec::new())?;
    let connected =
        command::eventually("the plugin is connected", DEADLINE, || Ok(!notes.all()?.is_empty()));
    let outcome = connected.and_then(|()| {
        [RUNC, OURS, "kata-like-sandbox"].into_iter().try_for_each(|handler| {
            adjusted(context, handler, &notes).with_context(|| handler.to_owned())
        })
    });
    plugin.signal(Signal::SIGKILL)?;
    let said = plugin.finish(DEADLINE)?;
    outcome.with_context(|| said.text())?;
    Ok(fs::remove_file(&notes.0)?)
}

fn adjusted(context: &Context, handler: &str, notes: &Notes) -> Result<()> {
    let directory = Path::new("/tmp").join(context.fresh_id());
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), "of the plugin's\n")?;
    let pod = Pod::run(context, handler, &json!({"annotations": {"lab/adjust": directory}}))?;
    let container = pod.sleeper()?;
    let look = "echo $FROM_PLUGIN; cat /from-plugin/file; touch /from-plugin/new 2>/dev/null || echo read-only
        cat /sys/fs/cgroup/memory.max; ulimit -n";
    let said = container.sh(look)?;
    let expected =
        format!("a value of the plugin's\nof the plugin's\nread-only\n{}\n777", 96 << 20);
    ensure!(said == expected, "{said:?}");
    let told = notes.of("PostCreateContainer", &pod)?;
    ensure!(told["container"]["annotations"]["lab/adjusted"] == "yes", "{told}");
    // What it is told of the pod is from the spec of its sandbox.
    let told = notes.of("RunPodSandbox", &pod)?["pod"].take();
    let cgroup = format!("/{}/{}", pod.cgroup().file_name().unwrap_or_default().display(), pod.id);
    ensure!(told["linux"]["cgroups_path"] == cgroup, "{told}");
    let namespaces = told["linux"]["namespaces"].as_array().context("namespaces")?;
    let network = namespaces.iter().find(|one| one["type"] == "network").context("a network")?;
    ensure!(Path::new(network["path"].as_str().context("its path")?).exists(), "{network}");
    ensure!(told["pid"].as_u64().is_some_and(|pid| pid > 1), "{told}");
    pod.remove()?;
    Ok(fs::remove_dir_all(directory)?)
}
