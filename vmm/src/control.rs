//! The control socket's end in the VMM: one loop between shim, machine and console.

use crate::causes::chain;
use crate::events::DeviceEvent;
use crate::machine::Machine;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::control::{self, Command, ControlError, Event, ExitReason};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Serves commands until the machine ends, and tells why it did; at the end the console's log is
/// complete and `Exited` is sent.
pub fn serve(socket: BorrowedFd<'_>, machine: &mut Machine) -> ExitReason {
    let reason = match run(socket, machine) {
        Ok(reason) => reason,
        Err(e) => ExitReason::Internal(chain(&e)),
    };
    machine.console().drain();
    // Nobody may be left to hear it.
    let _ = control::send(socket, &Event::Exited { reason: reason.clone() }, &[]);
    reason
}

/// Most events of devices that are handed on before what else there is to do.
const EVENTS_A_TURN: usize = 64;

/// The loop. What ends the machine comes as a value; an error is the socket's.
fn run(socket: BorrowedFd<'_>, machine: &mut Machine) -> Result<ExitReason, ControlError> {
    // The answer to a change that is not done yet.
    let mut owed = None;
    loop {
        let ready = wait(socket, machine, owed.is_some())?;
        if ready.exit {
            return Ok(machine.exit().reason().unwrap_or(ExitReason::Stopped));
        }
        if ready.console {
            machine.console().drain();
        }
        if ready.devices {
            // A guest that makes more of them all the time must not keep commands waiting.
            for _ in 0..EVENTS_A_TURN {
                let Some(event) = machine.events().next() else { break };
                forward(socket, event)?;
            }
        }
        if ready.socket {
            match control::receive::<Command>(socket) {
                Ok((Command::Connect { port }, fds)) => {
                    if let Some(stream) = fds.into_iter().next() {
                        machine.connect(port, stream);
                    }
                }
                Ok((Command::Stop, _)) | Err(ControlError::Closed) => {
                    return Ok(ExitReason::Stopped);
                }
                Ok((command, fds)) => {
                    // No answer overtakes another.
                    while owed.is_some() {
                        settle(socket, machine, &mut owed)?;
                    }
                    match obey(socket, machine, &command, fds)? {
                        Done::Now => {}
                        Done::Later(outcome) => owed = Some(outcome),
                        Done::Machine(reason) => return Ok(reason),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        settle(socket, machine, &mut owed)?;
    }
}

/// Gives back some memory that the machine has lost; there may be much of it, so that between two turns others have
/// theirs. The answer comes with the last, for then the host may count on it.
fn settle(
    socket: BorrowedFd<'_>,
    machine: &mut Machine,
    owed: &mut Option<Outcome>,
) -> Result<(), ControlError> {
    if owed.is_some()
        && !machine.free_some()
        && let Some(outcome) = owed.take()
    {
        control::send(socket, &Event::Done { outcome }, &[])?;
    }
    Ok(())
}

/// What became of a change of the machine.
type Outcome = Result<u64, String>;

/// What became of a command.
enum Done {
    /// It is carried out, and answered.
    Now,
    /// There is more to do before this answer.
    Later(Outcome),
    /// It ended the machine.
    Machine(ExitReason),
}

/// What there is to do.
struct Ready {
    socket: bool,
    exit: bool,
    devices: bool,
    console: bool,
}

/// Waits for some of it; if there is `more` to do, it only looks.
fn wait(socket: BorrowedFd<'_>, machine: &mut Machine, more: bool) -> Result<Ready, ControlError> {
    let patience = if more { PollTimeout::ZERO } else { PollTimeout::NONE };
    // The console's descriptor is borrowed from a part that is otherwise used mutably.
    let machine = &*machine;
    let mut fds = [
        PollFd::new(socket, PollFlags::POLLIN),
        PollFd::new(machine.exit().as_fd(), PollFlags::POLLIN),
        PollFd::new(machine.events().as_fd(), PollFlags::POLLIN),
        PollFd::new(machine.console_fd(), PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(ControlError::Socket(e.into())),
            Ok(_) => break,
        }
    }
    // An end of the peer shows as POLLHUP: reading then tells.
    let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    Ok(Ready {
        socket: any(&fds[0]),
        exit: any(&fds[1]),
        devices: any(&fds[2]),
        console: any(&fds[3]),
    })
}

fn forward(socket: BorrowedFd<'_>, event: DeviceEvent) -> Result<(), ControlError> {
    match event {
        DeviceEvent::Accepted { port, stream } => {
            control::send(socket, &Event::Accepted { port }, &[stream.as_fd()])
        }
        DeviceEvent::Fault(error) => {
            // Bounded: once per activation, and a driver that activates again and again only
            // slows itself down.
            eprintln!("kata-like-vmm: device stopped: {}", chain(&error));
            Ok(())
        }
    }
}

/// Carries out a command.
fn obey(
    socket: BorrowedFd<'_>,
    machine: &mut Machine,
    command: &Command,
    fds: Vec<OwnedFd>,
) -> Result<Done, ControlError> {
    match command {
        Command::Resize(size) => {
            return Ok(Done::Later(machine.resize(*size).map_err(|e| chain(&e))));
        }
        Command::AttachDisk { parts, read_only } => {
            let outcome = if fds.len() == parts.len() {
                let files = fds.into_iter().map(Into::into).zip(parts.iter().copied()).collect();
                machine.attach_disk(files, *read_only).map(u64::from).map_err(|e| chain(&e))
            } else {
                let (files, parts) = (fds.len(), parts.len());
                Err(format!(
                    "{files} files came with the command for a disk of {parts}, or too many are open"
                ))
            };
            control::send(socket, &Event::Done { outcome }, &[])?;
        }
        Command::DetachDisk { device } => {
            let outcome = machine.detach_disk(*device).map(|()| 0).map_err(|e| chain(&e));
            control::send(socket, &Event::Done { outcome }, &[])?;
        }
        Command::AttachNetwork { mac, mtu } => {
            let mut files = fds.into_iter().map(Into::into);
            let outcome = match files.next() {
                Some(tap) => machine
                    .attach_network((tap, files.next()), *mac, *mtu)
                    .map(u64::from)
                    .map_err(|e| chain(&e)),
                None => Err("no tap came with the command, or too many files are open".to_owned()),
            };
            control::send(socket, &Event::Done { outcome }, &[])?;
        }
        Command::DetachNetwork { device } => {
            let outcome = machine.detach_network(*device).map(|()| 0).map_err(|e| chain(&e));
            control::send(socket, &Event::Done { outcome }, &[])?;
        }
        Command::Counters => {
            control::send(socket, &Event::Counters(machine.counters()), &[])?;
        }
        // The loop's.
        Command::Connect { .. } | Command::Stop => {}
        Command::Boot(_) => {
            let reason = ExitReason::Internal("a second machine was asked for".into());
            return Ok(Done::Machine(reason));
        }
    }
    Ok(Done::Now)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
