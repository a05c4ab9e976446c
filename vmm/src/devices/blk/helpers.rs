//! More threads of a disk, so that several of its requests are at work at once.
//!
//! Why threads: io_uring, the other way, is refused by many hosts (`kernel.io_uring_disabled`, seccomp profiles of
//! engines), opens to whoever has broken into a thread all that a ring can do, which no filter sees, and would need
//! this as what to fall back on. The threads wait for notifications together with the disk's loop, and the kernel wakes
//! one of all: so who waits serves, without a hop from one to the other. They are there while a driver is.

use super::data_path::DataPath;
use crate::virtio::chain::ChainError;
use crate::virtio::starter::Threads;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How many, beside the loop's thread: a request that waits for the host's disk, or a few, keep no others from it.
const HELPERS: usize = 3;

/// What [`Helpers`] wait for.
#[derive(Clone, Copy)]
enum Token {
    Requests = 0,
    Stop = 1,
}

/// The threads of a disk, and how they are told of work and of its end.
pub(super) struct Helpers {
    threads: Threads,
    epoll: Epoll,
    /// Readable: they shall end.
    stop: EventFd,
    /// Readable: one has failed, see [`Self::failure`].
    failed: EventFd,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    failure: Option<ChainError>,
}

/// A thread that runs, or was asked for.
struct Running(Arc<Helpers>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.ended.notify_all();
    }
}

impl Helpers {
    /// None run yet.
    pub(super) fn new(threads: Threads) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let [stop, failed] = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        let event = EpollEvent::new(EventSet::IN, Token::Stop as u64);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), event)?;
        let (state, ended) = (Mutex::default(), Condvar::new());
        Ok(Self { threads, epoll, stop, failed, state, ended })
    }

    /// Starts them; they serve `path` when `notify` is written to. One that can't be started is done without.
    pub(super) fn start(
        self: &Arc<Self>,
        path: &Arc<DataPath>,
        notify: &EventFd,
    ) -> io::Result<()> {
        let _ = self.stop.read();
        let _ = self.failed.read();
        // One is woken, of these and the loop's thread, for each notification.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED | EventSet::EXCLUSIVE;
        let event = EpollEvent::new(events, Token::Requests as u64);
        self.epoll.ctl(ControlOperation::Add, notify.as_raw_fd(), event)?;
        for _ in 0..HELPERS {
            self.state().running += 1;
            let (running, path) = (Running(self.clone()), path.clone());
            let job = move || {
                running.0.work(&path);
                // Before it counts as ended.
                drop(path);
            };
            if self.threads.start("disk", Box::new(job)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Ends them, and waits until each has done what it is at.
    pub(super) fn stop(&self) {
        // Fails only when the counter is full: then it is readable.
        let _ = self.stop.write(1);
        let runs = |state: &mut State| state.running > 0;
        let waited = self.ended.wait_while(self.state(), runs);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Has those that are started next wait for another queue.
    pub(super) fn forget(&self, notify: &EventFd) {
        // It is there, unless they were not started.
        let event = EpollEvent::default();
        let _ = self.epoll.ctl(ControlOperation::Delete, notify.as_raw_fd(), event);
    }

    /// Becomes readable when one has failed.
    pub(super) fn failed(&self) -> &EventFd {
        &self.failed
    }

    /// Why one has failed.
    pub(super) fn failure(&self) -> Option<ChainError> {
        let _ = self.failed.read();
        self.state().failure.take()
    }

    fn work(&self, path: &DataPath) {
        loop {
            let mut ready = [EpollEvent::default()];
            match self.epoll.wait(-1, &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
                Ok(_) if ready[0].data() == Token::Stop as u64 => {
                    // For the next one.
                    let _ = self.stop.write(1);
                    return;
                }
                Ok(_) => {
                    if let Err(error) = path.serve() {
                        self.state().failure = Some(error);
                        let _ = self.failed.write(1);
                        return;
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
