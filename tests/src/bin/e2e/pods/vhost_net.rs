//! A pod's interface that the host's kernel serves.

use super::network::sent_each_way;
use super::pod::{Member, OURS, Pod, crictl};
use crate::command;
use crate::confinement::pid_of;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

crate::cases!(
    crate::Scope::Once;
    a_host_that_can_not_serve_it_is_told_how_it_could;
    crate::Scope::AllOnce;
    frames_pass_the_vmm_by_while_its_machine_grows_and_shrinks,
);

/// Ours where nothing names another.
const CONFIG: &str = "/etc/kata-like/config.toml";

/// The lab's address in the pods' network.
const GATEWAY: &str = "10.88.0.1";

const MIB: u64 = 1 << 20;

/// A configuration by which the host's kernel serves interfaces; gone when dropped.
struct Configured;

impl Configured {
    fn new() -> Result<Self> {
        ensure!(!fs::exists(CONFIG)?, "there is a {CONFIG}");
        fs::create_dir_all(Path::new(CONFIG).parent().context("its directory")?)?;
        fs::write(CONFIG, "[network]\nvhost_net = true\n")?;
        Ok(Self)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = fs::remove_file(CONFIG);
    }
}

fn modprobe(words: &[&str]) -> Result<()> {
    command::output(Command::new("modprobe").args(words))?.expect_code(0).map(drop)
}

/// Names of the VMM's threads; the kernel's own are among them.
fn threads() -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid_of("kata-like-vmm")?))?;
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks.map(|task| Ok(name(task?)?.trim().to_owned())).collect()
}

/// Bytes of the guest's memory.
fn memory(member: &Member<'_>) -> Result<u64> {
    let said = member.sh("awk '/^MemTotal:/ {print $2}' /proc/meminfo")?;
    Ok(said.parse::<u64>()? * 1024)
}

fn frames_pass_the_vmm_by_while_its_machine_grows_and_shrinks(context: &Context) -> Result<()> {
    modprobe(&["vhost_net"])?;
    let _configured = Configured::new()?;
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let names = threads()?;
    ensure!(names.iter().any(|name| name.starts_with("vhost-")), "the VMM's threads: {names:?}");
    let text = crictl(context, &["inspectp", &pod.id])?.expect_code(0)?.text();
    let network = serde_json::from_str::<Value>(&text)?["status"]["network"].take();
    let own: IpAddr = network["ip"].as_str().context("an address")?.parse()?;
    let member = pod.sleeper()?;
    let answered =
        || member.sh(&format!("ping -q -c 3 -i 0.1 {GATEWAY} | grep -o '3 packets rec'"));
    ensure!(answered()? == "3 packets rec");
    // Numbers that no two places share.
    let data: Vec<u8> =
        (0..4 * MIB as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    sent_each_way(&pod, own, GATEWAY, (&data, 1))?;
    let small = memory(&member)?;
    let large = json!({"linux": {"resources": {"memory_limit_in_bytes": 512 * MIB}}});
    let limited = pod.start(&["sleep", "1000000"], &large)?;
    ensure!(memory(&member)? > small + 256 * MIB, "the machine has not grown");
    // The guest's kernel takes what lies above 4 GiB, which is what was added, before the rest.
    sent_each_way(&pod, own, GATEWAY, (&data, 1))?;
    limited.remove()?;
    ensure!(answered()? == "3 packets rec");
    sent_each_way(&pod, own, GATEWAY, (&data, 1))?;
    pod.remove()
}

fn a_host_that_can_not_serve_it_is_told_how_it_could(context: &Context) -> Result<()> {
    modprobe(&["--remove", "vhost_net"])?;
    let configured = Configured::new()?;
    let said = command::output(Command::new("/usr/bin/kata-like").arg("check"))?.text();
    ensure!(said.contains("modprobe vhost_net"), "{said}");
    let refused = Pod::run(context, OURS, &Value::Null).map(|pod| pod.id.clone());
    let error = format!("{:#}", refused.err().context("the pod runs")?);
    for words in ["/dev/vhost-net", "modprobe vhost_net", "network.vhost_net"] {
        ensure!(error.contains(words), "{words}: {error}");
    }
    modprobe(&["vhost_net"])?;
    let said = command::output(Command::new("/usr/bin/kata-like").arg("check"))?.text();
    ensure!(said.contains("ok       vhost-net"), "{said}");
    drop(configured);
    let said = command::output(Command::new("/usr/bin/kata-like").arg("check"))?.text();
    ensure!(!said.contains("vhost-net"), "{said}");
    Ok(())
}
