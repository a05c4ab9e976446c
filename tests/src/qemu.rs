//! QEMU with the lab in it: its machine, and how it is started.

use crate::emulator::Emulator;
use crate::root::Root;
use crate::wire;
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// The lab's memory, MiB.
const MEMORY_MIB: u32 = 4096;

/// Where a disk can be plugged in.
pub const SLOT: &str = "plug";

/// How a lab comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From its kernel; disk and memory files are written, so that they can be frozen.
    Cold,
    /// From a frozen state, of which it is a copy-on-write clone.
    Resume,
    /// From its kernel, on so many CPUs, in turn, whose clock counts the instructions of all; the disk is a clone.
    Counting {
        /// How many.
        cpus: u32,
    },
}

/// The files of one lab.
#[derive(Debug)]
pub struct Files<'a> {
    /// The root that QEMU itself, the kernel and the modules are from.
    pub root: &'a Root,
    /// The folder of the initial RAM file system, the disk, the memory and the devices' state.
    pub state: &'a Path,
    /// A folder for the console, the monitor's socket, the process id.
    pub run: &'a Path,
    /// What emulates it.
    pub emulator: Emulator,
}

impl Files<'_> {
    /// The initial RAM file system.
    pub fn initramfs(&self) -> PathBuf {
        self.state.join("initramfs")
    }

    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.state.join("disk.img")
    }

    /// The memory's file.
    pub fn memory(&self) -> PathBuf {
        self.state.join("memory")
    }

    /// The devices' saved state.
    pub fn devices(&self) -> PathBuf {
        self.state.join("devices")
    }
}

/// The monitor's socket.
pub fn monitor(run: &Path) -> PathBuf {
    run.join("monitor")
}

/// The lab's serial console, and what QEMU says.
pub fn console(run: &Path) -> PathBuf {
    run.join("console")
}

/// Starts QEMU; the lab's agent will be at `port` of this host.
///
/// # Errors
/// When a file can't be made or QEMU can't be started.
pub fn spawn(files: &Files<'_>, start: Start, port: u16) -> Result<Child> {
    let said = File::create(files.run.join("qemu.log"))?;
    let mut command = files.emulator.command(files.root)?;
    command
        .args(machine(files, start))
        .args(devices(files, start, port))
        .env("TMPDIR", files.run)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said);
    // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
    }
    command.spawn().context("start QEMU")
}

fn machine(files: &Files<'_>, start: Start) -> Vec<String> {
    let share = if start == Start::Cold { "on" } else { "off" };
    let (accel, cpus) = match start {
        Start::Counting { cpus } => ("tcg,thread=single", cpus.to_string()),
        Start::Cold | Start::Resume => {
            let (accel, cpus) = files.emulator.accelerator();
            (accel, cpus.to_owned())
        }
    };
    let memory = match start {
        Start::Counting { .. } => format!("memory-backend-ram,id=m,size={MEMORY_MIB}M"),
        Start::Cold | Start::Resume => format!(
            "memory-backend-file,id=m,size={MEMORY_MIB}M,mem-path={},share={share}",
            files.memory().display()
        ),
    };
    let kernel = files.root.dir.join("vmlinuz").display().to_string();
    let initramfs = files.initramfs().display().to_string();
    let memory_mib = MEMORY_MIB.to_string();
    let mut args = vec![
        "-M",
        "q35,usb=off,vmport=off,memory-backend=m",
        "-object",
        &memory,
        "-m",
        &memory_mib,
        "-accel",
        accel,
        "-smp",
        &cpus,
        // Without `erms` and `fsrm`: `rep movsb` is emulated byte by byte.
        "-cpu",
        "max,+svm,+npt,-erms,-fsrm,-la57",
        "-kernel",
        &kernel,
        "-initrd",
        &initramfs,
        "-append",
        // With AppArmor containerd and its suites would want profiles loaded, by tools that aren't here.
        "console=ttyS0 quiet apparmor=0 mitigations=off panic=-1 random.trust_cpu=on tsc=reliable",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ];
    match start {
        Start::Resume => args.extend(["-incoming", "defer"]),
        Start::Counting { .. } => args.extend(["-icount", "shift=1,sleep=off"]),
        Start::Cold => {}
    }
    args.into_iter().map(str::to_owned).collect()
}

fn devices(files: &Files<'_>, start: Start, port: u16) -> Vec<String> {
    let snapshot = if start == Start::Cold { "off" } else { "on" };
    let disk = files.disk();
    let disk = disk.display();
    let agent = wire::PORT;
    vec![
        "-drive".to_owned(),
        format!("file={disk},format=raw,if=none,id=d0,cache=unsafe,snapshot={snapshot}"),
        "-device".to_owned(),
        "virtio-blk-pci,drive=d0".to_owned(),
        "-netdev".to_owned(),
        format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:{agent}"),
        "-device".to_owned(),
        "virtio-net-pci,netdev=n0,romfile=".to_owned(),
        "-device".to_owned(),
        "virtio-rng-pci".to_owned(),
        // For a disk that comes while the lab runs.
        "-device".to_owned(),
        format!("pcie-root-port,id={SLOT},chassis=1"),
        "-serial".to_owned(),
        format!("file:{}", console(files.run).display()),
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", monitor(files.run).display()),
        "-pidfile".to_owned(),
        files.run.join("pid").display().to_string(),
    ]
}
