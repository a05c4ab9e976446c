//! Limits that change while a container runs. `ctr` has no word for that, so the shim is called as containerd does.

use crate::context::{Container, Context};
use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::{Client, TaskClient};
use protobuf::well_known_types::any::Any;
use std::path::Path;

crate::cases!(
    crate::Scope::EachContainerd;
    limits_change_while_it_runs,
    what_the_guest_cannot_be_given_is_named,
);

/// Shows the container its cgroup, which `ctr` doesn't by itself.
const CGROUP: &str = "--mount=type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid";

/// The shim's socket of a container, as its bundle names it.
fn shim(context: &Context, container: &Container) -> Result<TaskClient> {
    let bundle = Path::new(&context.containerd.state())
        .join("io.containerd.runtime.v2.task/default")
        .join(&container.id);
    let address = match std::fs::read_to_string(bundle.join("bootstrap.json")) {
        Ok(text) => serde_json::from_str::<serde_json::Value>(&text)?["address"]
            .as_str()
            .context("no address")?
            .to_owned(),
        Err(_) => std::fs::read_to_string(bundle.join("address"))?,
    };
    Ok(TaskClient::new(Client::connect(&address)?))
}

fn update(context: &Context, container: &Container, resources: &str) -> Result<()> {
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: resources.as_bytes().to_vec(),
        ..Default::default()
    };
    let request = UpdateTaskRequest {
        id: container.id.clone(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    let limit = ttrpc::context::with_timeout(20_000_000_000);
    shim(context, container)?.update(limit, &request)?;
    Ok(())
}

fn limits_change_while_it_runs(context: &Context) -> Result<()> {
    let container = context.container().flag(CGROUP).detached(&["sleep", "1000000"])?;
    let resources = r#"{"memory": {"limit": 50331648}, "cpu": {"quota": 20000, "period": 100000},
        "pids": {"limit": 17}}"#;
    update(context, &container, resources)?;
    let show = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max pids.max cpu.max";
    let told = container.exec(&["sh", "-c", show])?.expect_code(0)?.text();
    let expected = "50331648\n17\n20000 100000";
    if told != expected {
        bail!("inside the limits are {told:?}");
    }
    update(context, &container, r#"{"pids": {"limit": 23}}"#)?;
    let told = container.exec(&["sh", "-c", show])?.expect_code(0)?.text();
    if told != expected.replace("17", "23") {
        bail!("after a change of one limit they are {told:?}");
    }
    container.remove()
}

fn what_the_guest_cannot_be_given_is_named(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    for (resources, name) in [
        (r#"{"cpu": {"cpus": "0-1"}}"#, "/cpu/cpus"),
        (r#"{"blockIO": {"weight": 10}}"#, "/blockIO"),
        ("7", "linux.resources"),
    ] {
        match update(context, &container, resources) {
            Ok(()) => bail!("{resources} was taken"),
            Err(error) if !format!("{error:#}").contains(name) => {
                return Err(error.context(format!("does not name {name}")));
            }
            Err(_) => {}
        }
    }
    container.remove()
}
