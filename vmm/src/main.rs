//! The VMM process: takes the configuration from its control socket, builds the machine, confines
//! itself, runs the machine, and tells how it ended.
//!
//! With `--probe` it only says whether this host's KVM runs guests, see [`vmm::verdict::report`].
//!
//! Exit status: 0 after a machine that ended by itself or was stopped, 1 after one that did not
//! start or that failed.

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use protocol::control::{self, BootTimes, CONTROL_FD, Command, Event, ExitReason};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use vmm::causes::chain;
use vmm::error::StartError;
use vmm::machine::Machine;
use vmm::seccomp::Filters;

fn main() -> ExitCode {
    let process_start = now();
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--probe") {
        println!("{}", vmm::verdict::report());
        return ExitCode::SUCCESS;
    }
    use_one_heap();
    // Before any descriptor has an owner: what a shim left open by mistake is no guest's to reach.
    if let Err(e) = jail::close_other_fds(&[CONTROL_FD]) {
        eprintln!("kata-like-vmm: {e}");
        return ExitCode::FAILURE;
    }
    match run(process_start) {
        Ok(ExitReason::Internal(why)) => {
            eprintln!("kata-like-vmm: {why}");
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kata-like-vmm: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// All threads allocate from the main heap. glibc's heaps of other threads cost memory each, and to
/// shrink one it opens `/proc/sys/vm/overcommit_memory`, which the seccomp filters answer with death.
fn use_one_heap() {
    // SAFETY: sets a number inside the allocator, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn run(process_start: u64) -> anyhow::Result<ExitReason> {
    let socket = control_socket()?;
    let (command, descriptors) =
        control::receive::<Command>(&socket).context("no configuration came")?;
    let Command::Boot(config) = command else {
        anyhow::bail!("the first command is not Boot");
    };
    let mut times = BootTimes { process_start, config_read: now(), ..BootTimes::default() };
    match start(&config, descriptors, &mut times) {
        Ok(mut machine) => {
            times.vcpus_started = now();
            machine.resume();
            control::send(&socket, &Event::Running(times), &[])?;
            Ok(vmm::control::serve(socket.as_fd(), &mut machine))
        }
        Err(error) => {
            let failed = Event::Failed { error: chain(&error), remedy: error.remedy() };
            control::send(&socket, &failed, &[])?;
            Err(error.into())
        }
    }
}

/// The machine, with this process confined and every thread but this one under its filter.
fn start(
    config: &protocol::machine::MachineConfig,
    descriptors: Vec<OwnedFd>,
    times: &mut BootTimes,
) -> Result<Machine, StartError> {
    let prepared = vmm::machine::build::build(config, descriptors)?;
    times.machine_built = now();
    vmm::confine::enter(&config.jail)?;
    let filters = Filters::compile().map_err(|e| StartError::Jail(e.into()))?;
    let machine = prepared.start(&filters)?;
    filters.main_thread.apply().map_err(|e| StartError::Jail(e.into()))?;
    Ok(machine)
}

fn control_socket() -> anyhow::Result<OwnedFd> {
    // SAFETY: only asks whether the number is an open descriptor.
    let open = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    nix::fcntl::fcntl(open, nix::fcntl::FcntlArg::F_GETFD).with_context(|| {
        format!("no control socket at descriptor {CONTROL_FD}: this program is started by the shim")
    })?;
    // SAFETY: it is open, was given to us for this purpose, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

/// `CLOCK_MONOTONIC`, nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| now.as_nanos() as u64)
}
