//! The shim called as containerd calls it, for what `ctr` has no word for.

use crate::bundle::Bundle;
use crate::context::{Container, Context};
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, Mount, PauseRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A connection to the shim of a container, by the socket that its bundle names.
pub fn connect(context: &Context, container: &Container) -> Result<Client> {
    let bundle = Path::new(&context.containerd.state())
        .join("io.containerd.runtime.v2.task/default")
        .join(&container.id);
    connect_to(&bundle)
}

/// The same to that of a pod that the sandbox API has made.
pub fn connect_to_pod(context: &Context, id: &str) -> Result<Client> {
    let state = PathBuf::from(context.containerd.state());
    connect_to(&state.join("io.containerd.sandbox.controller.v1.shim/k8s.io").join(id))
}

fn connect_to(bundle: &Path) -> Result<Client> {
    let address = match std::fs::read_to_string(bundle.join("bootstrap.json")) {
        Ok(text) => serde_json::from_str::<serde_json::Value>(&text)?["address"]
            .as_str()
            .context("no address")?
            .to_owned(),
        Err(_) => std::fs::read_to_string(bundle.join("address"))?,
    };
    Ok(Client::connect(&address)?)
}

/// The task API of a container's shim.
pub fn shim(context: &Context, container: &Container) -> Result<TaskClient> {
    Ok(TaskClient::new(connect(context, container)?))
}

/// A root file system as a snapshotter gives it.
pub fn root(fstype: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: fstype.into(),
        source: source.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}

/// A container's whole life beside those that the shim has already; gives its exit status.
pub fn run_beside(shim: &TaskClient, id: &str, bundle: &Bundle, root: Mount) -> Result<u32> {
    run_on(shim, id, bundle, vec![root])
}

/// The same on a root file system of several mounts.
pub fn run_on(shim: &TaskClient, id: &str, bundle: &Bundle, rootfs: Vec<Mount>) -> Result<u32> {
    let limit = || ttrpc::context::with_timeout(30_000_000_000);
    name_network(bundle)?;
    let create = CreateTaskRequest {
        id: id.into(),
        bundle: bundle.0.display().to_string(),
        rootfs,
        ..Default::default()
    };
    shim.create(limit(), &create).with_context(|| format!("create {id}"))?;
    // As runc's shim, though not its command line, has it.
    let paused = shim.pause(limit(), &PauseRequest { id: id.into(), ..Default::default() });
    if paused.is_ok() {
        bail!("a created task was paused");
    }
    shim.start(limit(), &StartRequest { id: id.into(), ..Default::default() })?;
    let ended = shim.wait(limit(), &WaitRequest { id: id.into(), ..Default::default() })?;
    shim.delete(limit(), &DeleteRequest { id: id.into(), ..Default::default() })?;
    Ok(ended.exit_status)
}

/// A network namespace, as engines write it: without one it is the host's network that they ask for.
pub fn name_network(bundle: &Bundle) -> Result<()> {
    let file = bundle.0.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    if !namespaces.iter().any(|namespace| namespace["type"] == "network") {
        namespaces.push(json!({"type": "network"}));
    }
    Ok(fs::write(&file, config.to_string())?)
}
