//! What commands ask a container's monitor, and where: packets as of [`protocol::control`] on a socket in the
//! container's directory.

use super::stats::Stats;
use crate::record::{Home, Record};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use protocol::control::{self, ControlError};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sandbox::Process;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a monitor may take for what costs it nothing.
const PROMPT: Duration = Duration::from_secs(5);

/// A question. Descriptors come with some, in the order given.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// Where in its life the container is.
    Status,
    /// Let the init process go.
    Start,
    /// Send a signal to the process, or to all of the container.
    Kill { exec: String, signal: u32, all: bool },
    /// Start a process and wait for it. Descriptors: a file with the OCI `process`, and pipes for its standard
    /// input, output and, without a terminal, error. Answered twice: [`Answer::Started`], [`Answer::Exited`].
    Exec(Exec),
    /// Set the size of an exec's terminal.
    Resize { exec: String, columns: u32, rows: u32 },
    /// Stop the processes, or let them go on.
    Pause(bool),
    /// Set limits. Descriptor: a file with the OCI `linux.resources`.
    Update,
    /// Which processes there are.
    Processes,
    /// What the container uses, as `runc events --stats` tells it; and its sandbox, which costs more to find out.
    Stats { sandbox: bool },
}

/// What is to be known of a process besides its OCI `process`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) id: String,
    /// In a paused container it waits for the resume; otherwise it is refused.
    pub(crate) ignore_paused: bool,
    /// See [`sandbox::NewExec::sub_cgroup`].
    pub(crate) sub_cgroup: String,
    /// See [`sandbox::io::Stdio::plain_newlines`].
    pub(crate) plain_newlines: bool,
}

/// The answer to a [`Call`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Status(Status),
    Started,
    Exited(u32),
    Processes(Vec<Process>),
    Stats {
        stats: Box<Stats>,
        /// How many of the container's processes were killed for lack of memory.
        oom_kills: u64,
    },
    /// It could not be done.
    Failed(String),
    /// Longer than a packet: in the file that comes with it.
    InFile,
}

/// Of the OCI runtime-spec, "State", and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// As runc says it.
pub(super) const NOT_RUNNING: &str = "container not running";

/// As runc says it.
pub(crate) const EXEC_IN_STOPPED: &str = "cannot exec in a stopped container";

/// Why a monitor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It is not there: the container has ended.
    #[error("{NOT_RUNNING}")]
    NotRunning,
    /// It lives and says nothing.
    #[error("the container's monitor, process {0}, does not answer")]
    Silent(i32),
    /// It said why not.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl CallError {
    fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// Where a container is in its life.
///
/// # Errors
/// Its monitor lives and can't be asked; whether the container runs is unknown then.
pub(crate) fn status(home: &Home, record: &Record) -> Result<Status, CallError> {
    if !record.monitor.lives() {
        return Ok(Status::Stopped);
    }
    match ask_status(home, record) {
        // On its way out: it has closed its socket, or is closing it.
        Err(CallError::NotRunning) if record.monitor.wait(PROMPT) => Ok(Status::Stopped),
        Err(CallError::NotRunning) => Err(CallError::Silent(record.monitor.pid)),
        answer => answer,
    }
}

/// The one question that a monitor always answers at once.
fn ask_status(home: &Home, record: &Record) -> Result<Status, CallError> {
    let silent = |error| match error {
        Silence::Late => CallError::Silent(record.monitor.pid),
        Silence::Error(error) => error,
    };
    let socket = connect_within(home, PROMPT).map_err(silent)?;
    match exchange(&socket, &Call::Status, &[]).map_err(silent)? {
        Answer::Status(status) => Ok(status),
        Answer::Failed(message) => Err(CallError::Refused(message)),
        _ => Err(CallError::Refused("it answered something else".into())),
    }
}

/// Asks the monitor of a container. [`Answer::Failed`] is an error here.
///
/// What is asked for may take its time, as hooks do; it is waited for as long as the monitor tells the status
/// meanwhile.
pub(crate) fn ask(home: &Home, call: &Call, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
    let record = home.load()?;
    let late = |late| match late {
        Silence::Late => CallError::Silent(record.monitor.pid),
        Silence::Error(error) => error,
    };
    let socket = connect_within(home, PROMPT).map_err(late)?;
    let mut answer = exchange(&socket, call, fds);
    while let Err(Silence::Late) = answer {
        ask_status(home, &record)?;
        answer = receive(&socket);
    }
    match answer.map_err(late)? {
        Answer::Failed(message) => Err(CallError::Refused(message).into()),
        answer => Ok(answer),
    }
}

/// Whether what was asked for failed because the container has ended.
pub(crate) fn is_not_running(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(CallError::NotRunning) => true,
        Some(CallError::Refused(why)) => why == NOT_RUNNING,
        _ => false,
    }
}

/// Fails when the monitor does not even tell the status: for those who wait for an answer by themselves.
pub(crate) fn check_answers(home: &Home) -> Result<()> {
    Ok(ask_status(home, &home.load()?).map(drop)?)
}

/// A connection to the monitor of a container that exists.
pub(crate) fn connect_to(home: &Home) -> Result<OwnedFd> {
    let record = home.load()?;
    connect_within(home, PROMPT).map_err(|error| match error {
        Silence::Late => CallError::Silent(record.monitor.pid).into(),
        Silence::Error(error) => error.into(),
    })
}

/// No answer.
enum Silence {
    /// Not yet.
    Late,
    Error(CallError),
}

impl From<CallError> for Silence {
    fn from(error: CallError) -> Self {
        Self::Error(error)
    }
}

fn exchange(socket: &OwnedFd, call: &Call, fds: &[BorrowedFd<'_>]) -> Result<Answer, Silence> {
    control::send(socket, call, fds).map_err(silence)?;
    receive(socket)
}

fn receive(socket: &OwnedFd) -> Result<Answer, Silence> {
    let (answer, files) = control::receive(socket).map_err(silence)?;
    let (Answer::InFile, Some(file)) = (&answer, files.into_iter().next()) else {
        return Ok(answer);
    };
    let answer = serde_json::from_reader(BufReader::new(File::from(file)));
    answer.map_err(|error| silence(ControlError::Malformed(error)))
}

fn silence(error: ControlError) -> Silence {
    match error {
        ControlError::Socket(error) if error.kind() == ErrorKind::WouldBlock => Silence::Late,
        ControlError::Socket(source) => {
            CallError::system("ask the container's monitor")(source).into()
        }
        ControlError::Closed => CallError::NotRunning.into(),
        ControlError::TooLong | ControlError::Malformed(_) => {
            CallError::Refused(format!("asking the container's monitor: {error}")).into()
        }
    }
}

/// A connection on which neither side is waited for longer than `patience` at a time.
fn connect_within(home: &Home, patience: Duration) -> Result<OwnedFd, Silence> {
    let (socket, address, _directory) = socket_in(home)?;
    let time = TimeVal::milliseconds(patience.as_millis() as i64);
    setsockopt(&socket, ReceiveTimeout, &time)
        .and_then(|()| setsockopt(&socket, SendTimeout, &time))
        .map_err(CallError::system("limit how long the monitor is waited for"))?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => Ok(socket),
        // More wait than it takes connections: none is taken.
        Err(Errno::EAGAIN) => Err(Silence::Late),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Err(CallError::NotRunning.into()),
        Err(error) => Err(CallError::system("reach the container's monitor")(error).into()),
    }
}

/// A socket and its address, which is good as long as the directory's descriptor: a path could be too long.
fn socket_in(home: &Home) -> Result<(OwnedFd, UnixAddr, OwnedFd), CallError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat(CWD, home.path(), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Err(CallError::NotRunning),
        opened => opened.map_err(CallError::system("open the container's directory"))?,
    };
    let path = format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd());
    let made = UnixAddr::new(path.as_str()).and_then(|address| {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok((socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?, address))
    });
    let (socket, address) = made.map_err(CallError::system("make a socket"))?;
    Ok((socket, address, directory))
}

/// Takes connections for a container.
pub(crate) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Begins to listen.
    pub(crate) fn bind(home: &Home) -> Result<Self> {
        let (socket, address, _directory) = socket_in(home)?;
        bind(socket.as_raw_fd(), &address).context("listen for commands")?;
        listen(&socket, Backlog::new(64)?)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        // SAFETY: the AsyncFd owns the descriptor and nothing takes it out, so it stays open while registered.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Result<OwnedFd> {
        let accepted = self.0.async_io(Interest::READABLE, |listener| {
            Ok(accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?)
        });
        // SAFETY: accept4 has just made this descriptor for this process; nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(accepted.await?) })
    }
}

#[cfg(test)]
pub(crate) mod tests;
