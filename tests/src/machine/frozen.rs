//! The state of a lab right after it came up, kept so that others resume from it.

use super::{Lab, Purpose, put_programs, spawn, start_services};
use crate::cache::{self, Step};
use crate::emulator::Emulator;
use crate::qemu::{self, Files, Start};
use crate::qmp::Qmp;
use crate::root::{Root, run};
use anyhow::{Context, Result};
use kata_like_rootfs_builder::cpio::{self, Entry, Kind};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INIT: &[u8] = include_bytes!("../../lab/init");
const INITRAMFS_INIT: &[u8] = include_bytes!("../../lab/initramfs-init");

/// What decides the state that is frozen: the agent in it, by its sources, so that a rebuilt but unchanged
/// agent or another compiler doesn't cost a new freeze.
const FROZEN_FROM: [&[u8]; 9] = [
    INIT,
    INITRAMFS_INIT,
    include_bytes!("../wire.rs"),
    include_bytes!("../containerd.rs"),
    include_bytes!("../pods.rs"),
    include_bytes!("../qemu.rs"),
    include_bytes!("../bin/lab_agent/main.rs"),
    include_bytes!("../bin/lab_agent/exec.rs"),
    include_bytes!("../bin/lab_agent/kept_vms.rs"),
];

/// A lab saved right after it came up: memory file, disk, device state.
#[derive(Debug)]
pub struct Frozen {
    /// The folder that holds it.
    pub dir: PathBuf,
    root: Root,
    emulator: Emulator,
}

impl Frozen {
    /// The state for a purpose, made if need be.
    ///
    /// # Errors
    /// When a step fails.
    pub fn prepare(agent: &Path, purpose: Purpose) -> Result<Self> {
        let root = Root::prepare()?;
        let tests = Self::of(&root, Purpose::Change);
        // One that is made for tests already shows a container as well.
        if purpose == Purpose::Show && tests.dir.exists() {
            return Ok(tests);
        }
        let frozen = Self::of(&root, purpose);
        cache::once(&frozen.dir, |part| {
            let agent = std::fs::read(agent).with_context(|| agent.display().to_string())?;
            freeze(part, &root, &agent, purpose)
        })?;
        Ok(frozen)
    }

    fn of(root: &Root, purpose: Purpose) -> Self {
        let emulator = purpose.emulator();
        let programs: String = purpose.programs().map(|(_, _, key)| key).collect();
        let more = [emulator.key(), programs.as_bytes()];
        let key = cache::key(&[&FROZEN_FROM[..], &more].concat());
        Self { dir: root.dir.join(format!("frozen-{key}")), root: root.clone(), emulator }
    }

    /// The files of a lab that is resumed from it.
    pub fn files<'a>(&'a self, run: &'a Path) -> Files<'a> {
        Files { root: &self.root, state: &self.dir, run, emulator: self.emulator }
    }
}

fn freeze(dir: &Path, root: &Root, agent: &[u8], purpose: Purpose) -> Result<()> {
    let emulator = purpose.emulator();
    let files = Files { root, state: dir, run: &dir.join("run"), emulator };
    emulator.command(root)?;
    for (programs, _, key) in purpose.programs() {
        programs.prepare(&key)?;
    }
    let step = Step::begin("lab: boot and freeze", "30 s");
    write_initramfs(&files.initramfs(), root, agent)?;
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(root.dir.join("disk.img"))
        .arg(files.disk()))?;
    let lab = Lab { run: files.run.to_owned() };
    let result = boot_and_freeze(&files, purpose).map_err(|error| error.context(lab.said()));
    lab.down()?;
    result?;
    step.end();
    Ok(())
}

fn boot_and_freeze(files: &Files<'_>, purpose: Purpose) -> Result<()> {
    let client = spawn(files, Start::Cold)?;
    client.wait_alive(Duration::from_secs(300))?; // seconds, on a machine that is not overloaded
    client.set_clock()?;
    put_programs(&client, purpose)?;
    start_services(&client)?;
    client.output(&["sync"])?;
    let mut qmp = Qmp::connect(&qemu::monitor(files.run), Duration::from_secs(10))?;
    qmp.call("stop", &json!({}))?;
    qmp.keep_memory_in_file()?;
    qmp.call("migrate", &json!({ "uri": format!("file:{}", files.devices().display()) }))?;
    qmp.wait_status("query-migrate", "completed", Duration::from_secs(60))?;
    qmp.call("quit", &json!({})).map(drop).or(Ok(())) // it may close the monitor first
}

/// The module for the disk, busybox to mount it, and what goes along to `/run/lab`.
fn write_initramfs(file: &Path, root: &Root, agent: &[u8]) -> Result<()> {
    let source = root.dir.join("root");
    let modules = source.join("usr/lib/modules").join(root.kernel_version()?);
    let read = |path: PathBuf| std::fs::read(&path).with_context(|| path.display().to_string());
    let busybox = read(source.join("usr/bin/busybox"))?;
    let disk_driver = read(modules.join("kernel/drivers/block/virtio_blk.ko"))?;
    let mut archive = cpio::Writer::new(std::fs::File::create(file)?);
    for path in ["bin", "dev", "root", "lab"] {
        archive.append(&Entry { path, mode: 0o755, kind: Kind::Directory })?;
    }
    let files: [(&str, &[u8]); 6] = [
        ("bin/busybox", &busybox),
        ("bin/sh", &busybox),
        ("virtio_blk.ko", &disk_driver),
        ("init", INITRAMFS_INIT),
        ("lab/init", INIT),
        ("lab/lab-agent", agent),
    ];
    for (path, bytes) in files {
        archive.append(&Entry { path, mode: 0o755, kind: Kind::File(bytes) })?;
    }
    archive.finish()?;
    Ok(())
}

/// Builds and freezes the lab unless that is done; `agent` is the lab's agent, static.
///
/// # Errors
/// When a step fails.
pub fn freeze_ahead(agent: &Path, purpose: Purpose) -> Result<()> {
    Frozen::prepare(agent, purpose).map(drop)
}
