//! A helper's process, from its birth to its end, by its pidfd.

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid,
};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long one that is dropped may take to die, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// A child of this process. Dropped while it lives, it is killed.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
    exit: Option<ExitStatus>,
}

impl Child {
    /// The child that has just been made, and its pidfd.
    ///
    /// # Errors
    /// The descriptor can't be watched.
    pub(super) fn new(pid: Pid, fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the descriptor and nothing takes it out, so it stays open while registered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, fd, exit: None })
    }

    /// Its pid: its own until it has been waited for.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until it has ended; can be dropped and called again.
    ///
    /// # Errors
    /// It is not this process's child any more.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            self.fd.readable().await?.clear_ready();
        }
    }

    /// Waits until it has ended, and leaves it: its pid is nobody else's until [`Child::wait`].
    ///
    /// # Errors
    /// The descriptor can't be watched.
    pub async fn exited(&self) -> io::Result<()> {
        self.fd.readable().await.map(drop)
    }

    /// Kills it, and waits for its end.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub async fn kill(&mut self) -> io::Result<ExitStatus> {
        // One that has ended takes no signal.
        let _ = pidfd_send_signal(self.fd.as_fd(), Signal::KILL);
        self.wait().await
    }

    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            self.exit = waitid(WaitId::PidFd(self.fd.as_fd()), flags)?.map(|end| status(&end));
        }
        Ok(self.exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(None)) {
            return;
        }
        let _ = pidfd_send_signal(self.fd.as_fd(), Signal::KILL);
        let begun = Instant::now();
        // What it used is given to others next.
        while matches!(self.ended(), Ok(None)) && begun.elapsed() < PATIENCE {
            std::thread::sleep(PAUSE);
        }
    }
}

fn status(end: &WaitIdStatus) -> ExitStatus {
    let by_signal = end.terminating_signal();
    ExitStatus::from_raw(by_signal.unwrap_or_else(|| end.exit_status().unwrap_or(0) << 8))
}
