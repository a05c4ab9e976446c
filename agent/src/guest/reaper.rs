//! One place that reaps every child of PID 1 and knows how each ended.
//!
//! Container processes are forked by workers that end at once, so they become children of PID 1.
//! A process may end before its worker has told us its pid: while a worker is at work
//! ([`Reaper::expect`]) the exits of unknown pids are kept. The kernel's pid limit bounds that store.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + signal number when killed by a signal.
    pub status: u32,
    /// Wall clock of the guest, nanoseconds since the epoch.
    pub at_ns: u64,
}

/// Becomes `Some` once, when the process ends.
pub type ExitCell = watch::Receiver<Option<Exit>>;

/// Reaps; see the module.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<i32, watch::Sender<Option<Exit>>>,
    early: HashMap<i32, Exit>,
    expecting: usize,
}

impl Reaper {
    /// Begins to reap. The task ends only when the signal can no longer be caught.
    ///
    /// # Errors
    /// When SIGCHLD cannot be caught.
    pub fn start(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Arc::clone(self);
        Ok(tokio::spawn(async move {
            while children.recv().await.is_some() {
                reaper.reap_all();
            }
        }))
    }

    /// Announces that a pid will be claimed; until then exits of unknown pids are kept.
    pub fn expect(self: &Arc<Self>) -> Expectation {
        self.lock().expecting += 1;
        Expectation { reaper: Arc::clone(self) }
    }

    fn reap_all(&self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.record(pid.as_raw(), code as u32 & 0xff),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.record(pid.as_raw(), 128 + signal as u32);
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return tracing::error!(%error, "waitpid"),
            }
        }
    }

    fn record(&self, pid: i32, status: u32) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exit = Exit { status, at_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) };
        let mut state = self.lock();
        if let Some(cell) = state.waiting.remove(&pid) {
            cell.send_replace(Some(exit));
        } else if state.expecting > 0 {
            state.early.insert(pid, exit);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent after every statement, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, no exit is forgotten.
#[derive(Debug)]
pub struct Expectation {
    reaper: Arc<Reaper>,
}

impl Expectation {
    /// The exit of `pid`, whether it has happened or not.
    pub fn claim(self, pid: i32) -> ExitCell {
        let mut state = self.reaper.lock();
        let early = state.early.remove(&pid);
        let (sender, receiver) = watch::channel(early);
        if early.is_none() {
            state.waiting.insert(pid, sender);
        }
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.expecting -= 1;
        if state.expecting == 0 {
            state.early = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_the_claim_is_kept() {
        let reaper = Arc::new(Reaper::default());
        let expectation = reaper.expect();
        reaper.record(7, 3);
        let cell = expectation.claim(7);
        assert_eq!(cell.borrow().map(|e| e.status), Some(3));
        assert!(reaper.lock().early.is_empty());
    }

    #[test]
    fn an_exit_after_the_claim_reaches_every_waiter_and_stays() {
        let reaper = Arc::new(Reaper::default());
        let cell = reaper.expect().claim(7);
        let other = cell.clone();
        assert!(cell.borrow().is_none());
        reaper.record(7, 137);
        reaper.record(7, 0); // The pid used again, by somebody else.
        assert_eq!(cell.borrow().map(|e| e.status), Some(137));
        assert_eq!(other.borrow().map(|e| e.status), Some(137));
    }

    #[test]
    fn exits_of_strangers_are_not_kept_when_nothing_is_expected() {
        let reaper = Arc::new(Reaper::default());
        reaper.record(7, 0);
        assert!(reaper.lock().early.is_empty());
        let first = reaper.expect();
        let second = reaper.expect();
        reaper.record(8, 0);
        drop(first);
        assert_eq!(reaper.lock().early.len(), 1);
        drop(second);
        assert!(reaper.lock().early.is_empty());
    }
}
