//! One job in a process of its own: libcontainer creates a container or a process in one.
//!
//! The worker makes the pipes or takes the terminal, and hands the agent's ends back with the pid.

use crate::guest::cgroup::Cgroup;
use crate::guest::{logging, sysctl};
use crate::io::stdio;
use crate::spec::dev_nodes;
use crate::spec::device_rules;
use crate::spec::id_maps;
use crate::spec::late_mounts::LateMounts;
use crate::spec::limits::{LimitError, Limits};
use crate::spec::{self, Own};
use crate::work::executor::{First, GuestExecutor, NewProcess};
use crate::work::job::{
    Answer, Failure, FailureKind, Job, PROCESS_FILE, SPEC_FILE, STATE_DIR, chain,
};
use crate::work::start_hooks;
use crate::work::users::Users;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{ContainerStatus, State};
use libcontainer::error::LibcontainerError;
use libcontainer::process::memory_policy::setup_memory_policy;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Process, Spec};
use protocol::control;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Component, Path};

/// The specification as libcontainer gets it, in the bundle.
const CONFIG_FILE: &str = "config.json";

/// Most names of calls that are told, and the longest, bytes: an answer has a limit.
const MAX_UNKNOWN_CALLS: usize = 100;
const MAX_CALL_NAME: usize = 64;

/// Does `job` and answers on `socket`.
pub fn run(job: &Job, socket: &OwnedFd) {
    let begun = Answer::Begun { worker: std::process::id() as i32 };
    if control::send(socket, &begun, &[]).is_err() {
        // Nobody waits for it any more.
        return;
    }
    let (answer, fds) = match perform(job) {
        Ok(Made { pid, terminal, unknown_calls, fds }) => {
            (Answer::Started { pid, terminal, unknown_calls }, fds)
        }
        Err(failure) => (Answer::Failed(failure), Vec::new()),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // Nobody to tell when it fails: the agent is gone, and the machine with it.
    let _ = control::send(socket, &answer, &fds);
}

/// What the specification says about the process to be made.
struct Plan {
    process: NewProcess,
    terminal: bool,
    /// Of a new container.
    container: Option<Container>,
}

struct Container {
    devices: Vec<LinuxDeviceCgroup>,
    mounts: LateMounts,
    late_limits: LinuxResources,
    /// Written to when the first process has to go to its working directory anew.
    moved: OwnedFd,
}

/// What came of a job.
struct Made {
    pid: i32,
    terminal: bool,
    unknown_calls: Vec<String>,
    fds: Vec<OwnedFd>,
}

fn perform(job: &Job) -> Result<Made, Failure> {
    // Unix socket addresses are short and ids are not: sockets are named relative to the bundle.
    std::env::set_current_dir(&job.bundle)
        .map_err(|e| Failure::internal("entering the bundle", &e))?;
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("PATH", id_maps::DIRECTORY) };
    let Plan { mut process, terminal, container } = prepare(job)?;
    let mut unknown_calls = std::mem::take(&mut process.privileges.unknown_calls);
    unknown_calls.retain(|name| name.len() <= MAX_CALL_NAME);
    unknown_calls.truncate(MAX_UNKNOWN_CALLS);
    let made = if terminal { with_terminal(job, process) } else { with_pipes(job, process) };
    let (pid, fds) = made?;
    if let Some(container) = container {
        finish(job, pid, container)?;
    }
    Ok(Made { pid, terminal, unknown_calls, fds })
}

/// What libcontainer doesn't do, before the container's first process is let go.
fn finish(job: &Job, pid: i32, mut container: Container) -> Result<(), Failure> {
    let cgroup = Cgroup::of(&job.container_id);
    device_rules::confine(&cgroup.path(""), &container.devices)
        .map_err(|e| Failure::internal("allowing the devices", &e))?;
    cgroup
        .limit(&container.late_limits)
        .map_err(|e| Failure::internal("limiting the processor time", &e))?;
    let covered = container.mounts.finish(pid);
    if covered.map_err(|e| Failure::internal("finishing the mounts", &e))? {
        nix::unistd::write(&container.moved, &[1])
            .map_err(|e| Failure::internal("telling of the working directory", &e))?;
    }
    Ok(())
}

/// Reads what the host sent and writes what libcontainer reads.
fn prepare(job: &Job) -> Result<Plan, Failure> {
    let mut spec: Spec = load(Path::new(SPEC_FILE))?;
    let Some(directory) = &job.process else {
        let own = spec::adapt_container(&mut spec, &job.container_id)?;
        let limits = match spec.process_mut() {
            Some(process) => take_limits(process, job)?,
            None => Limits::default(),
        };
        if let Some(root) = spec.root() {
            dev_nodes::make_way(&spec, root.path())
                .map_err(|e| Failure::internal("clearing /dev", &e))?;
        }
        let Own { privileges, devices, sysctls, late_limits, hooks } = own;
        sysctl::set(&sysctls).map_err(|message| Failure { kind: FailureKind::Invalid, message })?;
        let mounts = LateMounts::take_over(&mut spec, &job.bundle)
            .map_err(|e| Failure::internal("preparing the mounts", &e))?;
        store(Path::new(CONFIG_FILE), &spec)?;
        let (covered, moved) = pipe()?;
        let state = start_hooks::state(&job.container_id, &job.bundle, spec.annotations().clone());
        let first = Some(First { covered, hooks, state });
        let terminal = has_terminal(spec.process().as_ref());
        let container = Some(Container { devices, mounts, late_limits, moved });
        return Ok(Plan {
            process: NewProcess { privileges, limits, users: None, first },
            terminal,
            container,
        });
    };
    let file = Path::new(directory).join(PROCESS_FILE);
    let mut process: Process = load(&file)?;
    let privileges = spec::adapt_process(&mut process, &spec)?;
    let limits = take_limits(&mut process, job)?;
    if let Some(linux) = spec.linux() {
        // Inherited: libcontainer has the first process's set alone.
        let syscall = SyscallType::default().create_syscall();
        setup_memory_policy(linux.memory_policy(), syscall.as_ref())
            .map_err(|e| Failure::internal("setting the memory policy", &e))?;
    }
    // In the container's pid namespace it is in sight of the container's root before it is one of its processes.
    nix::sys::prctl::set_dumpable(false)
        .map_err(|e| Failure::internal("closing its memory to others", &e))?;
    let users = match first_process(job)?.pid {
        Some(first) if id_maps::has_users(&spec) => Some(
            Users::take_over(&mut process, first)
                .map_err(|e| Failure::internal("opening the container's user namespace", &e))?,
        ),
        _ => None,
    };
    store(&file, &process)?;
    let terminal = has_terminal(Some(&process));
    let process = NewProcess { privileges, limits, users, first: None };
    Ok(Plan { process, terminal, container: None })
}

fn take_limits(process: &mut Process, job: &Job) -> Result<Limits, Failure> {
    let invalid =
        |error: LimitError| Failure { kind: FailureKind::Invalid, message: chain(&error) };
    let limits = Limits::take_over(process, &job.limits).map_err(invalid)?;
    limits.make_room().map_err(invalid)?;
    Ok(limits)
}

fn has_terminal(process: Option<&Process>) -> bool {
    process.and_then(Process::terminal).unwrap_or(false)
}

fn with_pipes(job: &Job, process: NewProcess) -> Result<(i32, Vec<OwnedFd>), Failure> {
    let (child, fds) = stdio::pipes(job.wanted, process.privileges.owner)
        .map_err(|e| Failure::internal("making pipes", &e))?;
    let pid = build(job, process, |builder| {
        builder.with_stdin(child.stdin).with_stdout(child.stdout).with_stderr(child.stderr)
    })?;
    Ok((pid, fds))
}

fn with_terminal(job: &Job, process: NewProcess) -> Result<(i32, Vec<OwnedFd>), Failure> {
    let name = format!("console-{}.sock", std::process::id());
    let owner = process.privileges.owner;
    let listener = UnixListener::bind(&name)
        .map_err(|e| Failure::internal("listening for the terminal", &e))?;
    let path = job.bundle.join(&name);
    let built = build(job, process, |builder| builder.with_console_socket(Some(&path)));
    let _ = std::fs::remove_file(&path);
    let pid = built?;
    let master = stdio::receive_master(&listener)
        .map_err(|e| Failure::internal("receiving the terminal", &e))?;
    stdio::give_terminal(&master, owner.0)
        .map_err(|e| Failure::internal("setting the terminal's owner", &e))?;
    Ok((pid, vec![master]))
}

/// Has libcontainer make the process; its pid.
fn build(
    job: &Job,
    process: NewProcess,
    streams: impl FnOnce(ContainerBuilder) -> ContainerBuilder,
) -> Result<i32, Failure> {
    let (report, executor_end) = pipe()?;
    let (causes, log) = pipe()?;
    logging::errors_to(log);
    let executor = GuestExecutor::new(process, job.plain_newlines, executor_end);
    let builder = ContainerBuilder::new(job.container_id.clone(), SyscallType::default())
        .with_executor(executor);
    let builder = streams(builder);
    let built = match &job.process {
        None => builder
            .with_root_path(STATE_DIR)
            .map_err(|e| failure(&e))?
            .as_init(&job.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map(|container| container.pid()),
        Some(directory) => {
            let directory = job.bundle.join(directory);
            let sub_cgroup = join(job, &directory)?;
            builder
                .with_root_path(&directory)
                .map_err(|e| failure(&e))?
                .as_tenant()
                .with_process(Some(directory.join(PROCESS_FILE)))
                .with_sub_cgroup(sub_cgroup)
                .with_detach(true)
                .build()
                .map(Some)
        }
    };
    match built {
        Ok(Some(pid)) => Ok(pid.as_raw()),
        Ok(None) => Err(failure(&LibcontainerError::Other("no pid".to_owned()))),
        // What the executor found wrong says more than what libcontainer makes of it.
        Err(error) => Err(reported(report)
            .or_else(|| full_place(&job.sub_cgroup, &chain(&error)))
            .unwrap_or_else(|| with_cause(failure(&error), causes))),
    }
}

/// That a place below the cgroup was asked for which takes no process, as its cgroups have the controllers: as runc says it.
fn full_place(sub_cgroup: &str, error: &str) -> Option<Failure> {
    let is_full = !sub_cgroup.is_empty() && error.contains("Device or resource busy");
    let message =
        format!("adding pid of the process to cgroups at {sub_cgroup}: device or resource busy");
    is_full.then_some(Failure { kind: FailureKind::Invalid, message })
}

/// What libcontainer noted of the container and its first process.
fn first_process(job: &Job) -> Result<State, Failure> {
    let directory = Path::new(STATE_DIR).join(&job.container_id);
    State::load(&directory).map_err(|e| Failure::internal("reading the container's state", &e))
}

/// Puts the container's state, for libcontainer, into the directory of a process to be added: the sockets that it
/// makes beside the state, and leaves there, go with that directory. The process's place below the cgroup.
fn join(job: &Job, directory: &Path) -> Result<Option<String>, Failure> {
    let internal = |error: &dyn std::error::Error| Failure::internal("joining", error);
    let mut state = first_process(job)?;
    // The agent knows whether the container takes one more; libcontainer was not told of the start.
    state.status = ContainerStatus::Running;
    let own = directory.join(&job.container_id);
    std::fs::create_dir(&own).map_err(|e| internal(&e))?;
    state.save(&own).map_err(|e| internal(&e))?;
    let cgroup = Cgroup::of(&job.container_id);
    if !job.sub_cgroup.is_empty() {
        return asked_place(&cgroup, &job.sub_cgroup).map(Some);
    }
    let Some(first) = state.pid else { return Ok(None) };
    let place = cgroup.place_beside(first).map_err(|e| internal(&e))?;
    Ok(place.map(|path| path.to_string_lossy().into_owned()))
}

/// A place that is asked for, which libcontainer would make.
fn asked_place(cgroup: &Cgroup, sub_cgroup: &str) -> Result<String, Failure> {
    let invalid = |message| Failure { kind: FailureKind::Invalid, message };
    let below = Path::new(sub_cgroup.trim_start_matches('/'));
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(invalid(format!("bad sub cgroup path: {sub_cgroup}")));
    }
    match std::fs::metadata(cgroup.path(sub_cgroup.trim_start_matches('/'))) {
        Ok(_) if below == Path::new("") => Ok("/".to_owned()),
        Ok(place) if place.is_dir() => Ok(below.to_string_lossy().into_owned()),
        Ok(_) => Err(invalid(format!("joining cgroup {sub_cgroup}: not a directory"))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(invalid(format!("joining cgroup {sub_cgroup}: no such file or directory")))
        }
        Err(error) => Err(invalid(format!("joining cgroup {sub_cgroup}: {error}"))),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|e| Failure::internal("making a pipe", &e))
}

/// What [`GuestExecutor`] wrote before it gave up.
fn reported(report: OwnedFd) -> Option<Failure> {
    serde_json::from_slice(&read_now(report)).ok()
}

fn read_now(pipe: OwnedFd) -> Vec<u8> {
    let mut text = Vec::new();
    // It is not blocking: "would block" after the text means that the writer still lives.
    let _ = std::fs::File::from(pipe).take(64 * 1024).read_to_end(&mut text);
    text
}

/// What libcontainer's processes log first says what they failed at, which its errors don't.
fn with_cause(mut failure: Failure, causes: OwnedFd) -> Failure {
    let text = read_now(causes);
    if let Some(cause) = String::from_utf8_lossy(&text).lines().next() {
        let _ = write!(failure.message, ": {cause}");
    }
    failure
}

fn failure(error: &LibcontainerError) -> Failure {
    let kind = match error {
        LibcontainerError::IncorrectStatus(_) => FailureKind::WrongState,
        LibcontainerError::MissingSpec(_)
        | LibcontainerError::InvalidSpec(_)
        | LibcontainerError::InvalidID(_)
        | LibcontainerError::Spec(_) => FailureKind::Invalid,
        _ => FailureKind::Internal,
    };
    Failure { kind, message: chain(error) }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::internal("reading the spec", &e))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure {
        kind: FailureKind::Invalid,
        message: format!("the specification is not valid: {error}"),
    })
}

fn store<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(value).map_err(|e| Failure::internal("writing the spec", &e))?;
    std::fs::write(path, bytes).map_err(|e| Failure::internal("writing the spec", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_takes_nobody_is_told_of() {
        let error = "cgroup error: failed to write 65: Device or resource busy (os error 16)";
        let said = full_place("/", error).unwrap().message;
        assert_eq!(said, "adding pid of the process to cgroups at /: device or resource busy");
        assert!(full_place("", error).is_none(), "nobody asked for it");
        assert!(full_place("/", "No space left on device").is_none());
    }
}
