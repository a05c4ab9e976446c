//! Boots a kernel with the VMM built beside this program and shows what the VMM says: for
//! debugging and for measuring a start without a shim.
//!
//! `boot KERNEL INITRD MEMORY_MIB VCPUS [WORD...]`; `CONSOLE=FILE` keeps the console's log,
//! `NAMESPACES=0` leaves out what only root can do.

use anyhow::Context;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::time::{ClockId, clock_gettime};
use protocol::control::{self, CONTROL_FD, Command, ControlError, Event};
use protocol::machine::{JailConfig, MachineConfig};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Child;
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
        kernel: kernel.into(),
        initrd: (initrd != "-").then(|| initrd.into()),
        cmdline: words.join(" "),
        console_log: Some(console.clone().into()),
        disks: Vec::new(),
        vsock: None,
        shared_dirs: Vec::new(),
        jail: JailConfig { uid: 65_534, gid: 65_534, namespaces },
    };
    let started = now()?;
    let (socket, mut vmm) = spawn()?;
    control::send(&socket, &Command::Boot(Box::new(config)), &[])?;
    loop {
        let event = match control::receive::<Event>(&socket) {
            Ok((event, _)) => event,
            Err(ControlError::Closed) => break,
            Err(e) => return Err(e.into()),
        };
        let at = now()? - started;
        match event {
            Event::Running(t) => {
                let ms = |instant: u64| (instant as f64 - started.as_nanos() as f64) / 1e6;
                println!(
                    "{:9.2} ms main, {:.2} config read, {:.2} machine built, {:.2} vCPUs started",
                    ms(t.process_start),
                    ms(t.config_read),
                    ms(t.machine_built),
                    ms(t.vcpus_started)
                );
            }
            Event::Exited { reason } => println!("{:9.2} ms {reason}", at.as_secs_f64() * 1e3),
            other => println!("{:9.2} ms {other:?}", at.as_secs_f64() * 1e3),
        }
    }
    println!("VMM: {}", vmm.wait()?);
    print!("{}", std::fs::read_to_string(console)?);
    Ok(())
}

/// Starts the VMM; this end of its control socket, and the process.
fn spawn() -> anyhow::Result<(OwnedFd, Child)> {
    let me = std::env::current_exe()?;
    let beside = me.parent().context("no directory")?;
    let path = [beside.join("kata-like-vmm"), beside.join("../kata-like-vmm")]
        .into_iter()
        .find(|p| p.exists())
        .context("kata-like-vmm is not beside this program")?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let theirs_raw = theirs.as_raw_fd();
    let mut command = std::process::Command::new(path);
    let give_socket = move || {
        // SAFETY: plain system calls on a descriptor that is open in the child.
        let result = unsafe {
            if theirs_raw == CONTROL_FD {
                libc::fcntl(theirs_raw, libc::F_SETFD, 0)
            } else {
                libc::dup2(theirs_raw, CONTROL_FD)
            }
        };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure only makes async-signal-safe calls.
    unsafe { command.pre_exec(give_socket) };
    let child = command.spawn().context("start the VMM")?;
    Ok((ours, child))
}

fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}
