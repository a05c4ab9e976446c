//! A root file system of more layers than one page of mount options can name in full.

use crate::bundle::{Bundle, config};
use crate::context::Context;
use crate::task_api::{root, run_beside, shim};
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use std::fs;

crate::cases!(
    crate::Scope::AllOnce;
    more_layers_than_a_page_can_name,
);

/// As many as Docker allows.
const LAYERS: usize = 127;

fn more_layers_than_a_page_can_name(context: &Context) -> Result<()> {
    let sleeper = context.sleeper()?;
    let bundle = Bundle::new(context, &[])?;
    let at = |name: &str| bundle.0.join(name);
    let layer = |n| at(&format!("io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs"));
    fs::create_dir_all(layer(0).parent().context("a directory")?)?;
    fs::rename(at("rootfs"), layer(0))?;
    let mut lower = vec![layer(0).display().to_string()];
    for n in 1..=LAYERS {
        let layer = layer(n);
        fs::create_dir_all(layer.join("layers"))?;
        fs::write(layer.join(format!("layers/{n}")), "")?;
        fs::write(layer.join("top"), n.to_string())?;
        lower.insert(0, layer.display().to_string());
    }
    for dir in ["upper", "work"] {
        fs::create_dir(at(dir))?;
    }
    let layers = format!("lowerdir={}", lower.join(":"));
    let (upper, work) = (at("upper").display().to_string(), at("work").display().to_string());
    let options = [layers.as_str(), &format!("upperdir={upper}"), &format!("workdir={work}")];
    if layers.len() < 8192 {
        bail!("{} bytes of options prove little", layers.len());
    }
    let script = format!(
        "test $(ls /layers | wc -l) = {LAYERS} && test $(cat /top) = {LAYERS} && echo kept > /new"
    );
    let mut spec = config(&["sh", "-c", &script]);
    let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"].as_array_mut().context("mounts")?.push(dev);
    bundle.write_config(&spec)?;
    let shim = shim(context, &sleeper)?;
    let id = format!("{}-layered", sleeper.id);
    let status = run_beside(&shim, &id, &bundle, root("overlay", "overlay", &options))?;
    if status != 0 {
        bail!("it ended with {status}");
    }
    if fs::read_to_string(at("upper/new"))? != "kept\n" {
        bail!("what it wrote is not in the upper layer");
    }
    sleeper.remove()
}
