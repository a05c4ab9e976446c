//! Boots a kernel with the VMM built beside this program and shows what the VMM says: for
//! debugging and for measuring a start without a shim.
//!
//! `boot KERNEL INITRD MEMORY_MIB VCPUS [WORD...]`; `CONSOLE=FILE` keeps the console's log,
//! `NAMESPACES=0` leaves out what only root can do. Lines on standard
//! input are commands: `pause`, `resume`, `counters`, `stop`.

#[path = "../tests/launch/mod.rs"]
mod launch;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use protocol::control::{self, Command, ControlError, Event};
use protocol::machine::{JailConfig, MachineConfig, Size, VsockConfig};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, memory_mib, vcpus, words @ ..] = &args[..] else {
        anyhow::bail!("usage: boot KERNEL INITRD MEMORY_MIB VCPUS [WORD...]");
    };
    let console = std::env::var("CONSOLE").unwrap_or_else(|_| "/tmp/console.log".into());
    let namespaces = std::env::var("NAMESPACES").as_deref() != Ok("0");
    let config = MachineConfig {
        vcpus: vcpus.parse()?,
        memory_mib: memory_mib.parse()?,
        max: Size::default(),
        nested: false,
        kernel: kernel.into(),
        initrd: (initrd != "-").then(|| initrd.into()),
        cmdline: words.join(" "),
        console_log: Some(console.clone().into()),
        slots: 0,
        vsock: Some(VsockConfig { guest_cid: 3, host_ports: vec![protocol::ports::LOG] }),
        shared_dirs: Vec::new(),
        jail: JailConfig { uid: 65_534, gid: 65_534, namespaces, core_scheduling: true },
    };
    let started = now()?;
    let (socket, mut vmm) = launch::spawn(&find_vmm()?).context("start the VMM")?;
    control::send(&socket, &Command::Boot(Box::new(config)), &[])?;
    pass_commands(socket.try_clone()?);
    loop {
        let event = match control::receive::<Event>(&socket) {
            Ok((event, _)) => event,
            Err(ControlError::Closed) => break,
            Err(e) => return Err(e.into()),
        };
        let at = ms(now()?.saturating_sub(started));
        match event {
            Event::Running(t) => {
                let ms = |instant| ms(Duration::from_nanos(instant).saturating_sub(started));
                println!(
                    "{:9.2} ms main, {:.2} config read, {:.2} machine built, {:.2} vCPUs started",
                    ms(t.process_start),
                    ms(t.config_read),
                    ms(t.machine_built),
                    ms(t.vcpus_started)
                );
            }
            Event::Exited { reason } => println!("{at:9.2} ms {reason}"),
            other => println!("{at:9.2} ms {other:?}"),
        }
    }
    let status = vmm.wait()?;
    println!("{:9.2} ms VMM: {status}", ms(now()?.saturating_sub(started)));
    print!("{}", std::fs::read_to_string(console)?);
    Ok(())
}

/// Sends what is typed, until the end of standard input.
fn pass_commands(socket: OwnedFd) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match serde_json::from_str::<Command>(&format!("{line:?}")) {
                Ok(command) => drop(control::send(&socket, &command, &[])),
                Err(e) => eprintln!("{line}: {e}"),
            }
        }
    });
}

/// The VMM in this program's directory, or above it, where Cargo puts it.
fn find_vmm() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me.parent().context("no directory")?;
    [beside.join("kata-like-vmm"), beside.join("../kata-like-vmm")]
        .into_iter()
        .find(|path| path.exists())
        .context("kata-like-vmm is not beside this program")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}
