//! A VMM alone, without shim and containerd: as a shim starts it.

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::control::{self, CONTROL_FD, Command, Event, ExitReason};
use protocol::machine::{JailConfig, MachineConfig, Size, VsockConfig};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// A started VMM; killed when dropped.
pub struct Machine {
    process: Child,
    control: OwnedFd,
    /// Streams that the guest opened: kept, so that the agent's log does not break.
    streams: Vec<OwnedFd>,
}

/// The configuration of a guest that starts our agent and shares nothing.
pub fn config(vcpus: u32, console: &str) -> MachineConfig {
    MachineConfig {
        vcpus,
        memory_mib: 128,
        max: Size::default(),
        nested: false,
        kernel: "/usr/share/kata-like/vmlinux".into(),
        initrd: Some("/usr/share/kata-like/guest.img".into()),
        cmdline: String::new(),
        console_log: Some(PathBuf::from(console)),
        slots: 0,
        vsock: Some(VsockConfig { guest_cid: 3, host_ports: vec![protocol::ports::LOG] }),
        shared_dirs: Vec::new(),
        jail: JailConfig { uid: 65534, gid: 65534, namespaces: true, core_scheduling: true },
    }
}

impl Machine {
    /// Starts the VMM and hands it the configuration.
    pub fn start(config: MachineConfig) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let mut command = std::process::Command::new("/usr/libexec/kata-like/kata-like-vmm");
        let raw = theirs.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe; the closure owns nothing of the parent's.
        unsafe {
            command.pre_exec(move || {
                nix::errno::Errno::result(nix::libc::dup2(raw, CONTROL_FD)).map(drop)?;
                Ok(())
            });
        }
        let process = command.spawn().context("start the VMM")?;
        control::send(&ours, &Command::Boot(Box::new(config)), &[])?;
        Ok(Self { process, control: ours, streams: Vec::new() })
    }

    /// Waits until the agent has reported in.
    pub fn await_agent(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.next_event(end)? {
                Event::Accepted { port } if port == protocol::ports::LOG => return Ok(()),
                Event::Failed { error, remedy } => bail!("{error}: {remedy}"),
                Event::Exited { reason } => bail!("the machine ended: {reason}"),
                _ => {}
            }
        }
    }

    /// Asks for something.
    pub fn command(&self, command: &Command) -> Result<()> {
        Ok(control::send(&self.control, command, &[])?)
    }

    /// KVM's and the devices' counters, for the report of a guest that hangs.
    pub fn counters(&mut self) -> Result<Vec<(String, u64)>> {
        control::send(&self.control, &Command::Counters, &[])?;
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Event::Counters(counters) = self.next_event(end)? {
                return Ok(counters);
            }
        }
    }

    /// Stops the machine; the VMM must say so and exit 0.
    pub fn stop(mut self) -> Result<()> {
        control::send(&self.control, &Command::Stop, &[])?;
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Event::Exited { reason } = self.next_event(end)? {
                if reason != ExitReason::Stopped {
                    bail!("the machine ended: {reason}");
                }
                break;
            }
        }
        match crate::command::wait_until(&mut self.process, end)? {
            Some(status) if status.success() => Ok(()),
            other => bail!("the VMM's exit status is {other:?}"),
        }
    }

    /// What the VMM says next.
    pub fn next_event(&mut self, end: Instant) -> Result<Event> {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout)? == 0 {
            bail!("the VMM says nothing");
        }
        let (event, streams) = control::receive::<Event>(&self.control)?;
        self.streams.extend(streams);
        Ok(event)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
