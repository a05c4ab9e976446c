//! What commands ask a container's monitor, and where: packets as of [`protocol::control`] on a socket in the
//! container's directory.

use crate::record::{Home, Record};
use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use protocol::control;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
    Exec { exec: String },
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

/// The answer to a [`Call`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Status(Status),
    Started,
    Exited(u32),
    Processes(Vec<Process>),
    Stats(Box<serde_json::Value>),
    /// It could not be done.
    Failed(String),
}

/// A process of the container, as the guest sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) uid: u32,
    pub(crate) command: String,
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

/// Where a container is in its life: stopped, if nobody is there to ask.
pub(crate) fn status(home: &Home, record: &Record) -> Status {
    if !record.monitor.lives() {
        return Status::Stopped;
    }
    match ask(home, &Call::Status, &[]) {
        Ok(Answer::Status(status)) => status,
        _ => Status::Stopped,
    }
}

/// Asks the monitor of a container. [`Answer::Failed`] is an error here.
pub(crate) fn ask(home: &Home, call: &Call, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<Answer> {
    let socket = connect_to(home)?;
    control::send(&socket, call, fds).map_err(|_| not_running())?;
    match control::receive(&socket).map_err(|_| not_running())?.0 {
        Answer::Failed(message) => bail!(message),
        answer => Ok(answer),
    }
}

/// As runc says it.
pub(super) const NOT_RUNNING: &str = "container not running";

fn not_running() -> anyhow::Error {
    anyhow::anyhow!(NOT_RUNNING)
}

/// A connection to the monitor of a container that exists.
pub(crate) fn connect_to(home: &Home) -> Result<OwnedFd> {
    home.load()?;
    let (socket, address, _directory) = socket_in(home)?;
    connect(socket.as_raw_fd(), &address).map_err(|_| not_running())?;
    Ok(socket)
}

/// A socket and its address, which is good as long as the directory's descriptor: a path could be too long.
fn socket_in(home: &Home) -> Result<(OwnedFd, UnixAddr, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        openat(CWD, home.path(), flags, Mode::empty()).context("container's directory")?;
    let path = format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd());
    let address = UnixAddr::new(path.as_str())?;
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok((socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?, address, directory))
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
