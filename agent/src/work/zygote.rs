//! The single-threaded process that forks for the agent.
//!
//! libcontainer forks, and a fork out of a process with more threads can leave a lock held for ever
//! in the child. So before the runtime starts, PID 1 forks the zygote, which keeps one thread and no
//! state: for every job it forks a worker ([`crate::work::worker`]), which does the job, answers and ends.
//! A fork is also several times cheaper in a fresh guest than executing the agent again.

use crate::guest::ps;
use crate::io::transport;
use crate::work::deadline::Deadline;
use crate::work::job::{Answer, Job};
use crate::work::worker;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, fork};
use protocol::control::{self, ControlError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Most workers at once.
const MAX_WORKERS: usize = 16;

/// Why a job has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// The zygote is gone or does not understand us.
    #[error("the process that forks is gone")]
    Gone(#[source] ControlError),
    /// The worker ended without an answer.
    #[error("the worker died before it answered")]
    WorkerDied(#[source] ControlError),
    /// The worker was killed: its caller waits no longer.
    #[error("the worker did not answer within {seconds} s: {doing}")]
    Silent {
        /// How long there was.
        seconds: u64,
        /// What it and its processes were doing.
        doing: String,
    },
    /// No socket pair.
    #[error("making a socket pair")]
    Socket(#[source] io::Error),
}

/// The agent's end.
#[derive(Debug)]
pub struct Zygote {
    pid: i32,
    socket: OwnedFd,
    slots: Semaphore,
}

impl Zygote {
    /// Forks the zygote. The process must have one thread.
    ///
    /// # Errors
    /// When the kernel refuses the socket pair or the fork.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        // SAFETY: the process has one thread, so the child may do whatever this process may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                Ok(Self { pid: child.as_raw(), socket: ours, slots: Semaphore::new(MAX_WORKERS) })
            }
            ForkResult::Child => {
                drop(ours);
                serve(&theirs)
            }
        }
    }

    /// Its process, which ends only with the agent.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has a worker do `job` until then; the descriptors are those of [`Answer::Started`].
    ///
    /// # Errors
    /// See [`ZygoteError`]; a job that failed is an answer, not an error.
    pub async fn run(
        &self,
        job: &Job,
        deadline: Deadline,
    ) -> Result<(Answer, Vec<OwnedFd>), ZygoteError> {
        let until = tokio::time::Instant::from_std(deadline.at());
        let silent = |doing| ZygoteError::Silent { seconds: deadline.seconds(), doing };
        let slot = tokio::time::timeout_at(until, self.slots.acquire()).await;
        let Ok(_slot) = slot else { return Err(silent("too many others are at work".to_owned())) };
        let (ours, theirs) = pair().map_err(ZygoteError::Socket)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|e| ZygoteError::Socket(e.into()))?;
        control::send(&self.socket, job, &[theirs.as_fd()]).map_err(ZygoteError::Gone)?;
        drop(theirs);
        let socket = transport::pollable(ours).map_err(ZygoteError::Socket)?;
        let mut worker = None;
        let last = async {
            loop {
                match receive(&socket).await? {
                    (Answer::Begun { worker: pid }, _) => worker = Some(pid),
                    last => return Ok(last),
                }
            }
        };
        match tokio::time::timeout_at(until, last).await {
            Ok(answer) => answer,
            Err(_) => Err(silent(match worker {
                Some(pid) => ps::end_tree(pid),
                None => "it never began".to_owned(),
            })),
        }
    }
}

/// The next packet, or that the worker has ended.
async fn receive(socket: &AsyncFd<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), ZygoteError> {
    loop {
        let mut ready = socket.readable().await.map_err(ZygoteError::Socket)?;
        match control::receive(socket) {
            Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
            }
            received => return received.map_err(ZygoteError::WorkerDied),
        }
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// The zygote's life: ends when the agent does.
fn serve(socket: &OwnedFd) -> ! {
    // SAFETY: no handler is installed; ended workers need no wait, and their children go to PID 1.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    // Workers undo it for themselves, so no container inherits it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    loop {
        match control::receive::<Job>(socket) {
            Ok((job, fds)) => fork_worker(&job, fds),
            Err(ControlError::Malformed(_) | ControlError::TooLong) => {}
            Err(ControlError::Closed | ControlError::Socket(_)) => std::process::exit(0),
        }
    }
}

fn fork_worker(job: &Job, mut fds: Vec<OwnedFd>) {
    let Some(answer) = fds.pop() else { return };
    // SAFETY: the zygote has one thread. When the fork fails the answer's socket closes,
    // and the agent reports the worker as dead.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        // SAFETY: no handler is installed; libcontainer waits for its children.
        let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        worker::run(job, &answer);
        std::process::exit(0);
    }
}
