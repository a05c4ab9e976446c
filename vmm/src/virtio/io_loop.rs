//! Threads that run device workers: one epoll set each.
//!
//! Devices whose workers never block (rng, vsock) share a loop; each disk and each file system has one of its own,
//! because a read of a slow disk or a handshake with a server must not stall the others.
//! A loop exists, and takes requests, before its thread does: devices are built first, then the
//! process is confined, and only then are the threads started, under their seccomp filters.

use super::handover::{Handover, Stopped};
use super::watcher::Watcher;
use super::{Interrupt, Worker};
use crate::events::{DeviceEvent, EventSender, WorkerError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Events taken from the kernel at a time.
const BATCH: usize = 32;
/// Worker id of the loop's own wake-up descriptor.
const WAKE: u32 = 0;

/// Called first on the new thread: applies its seccomp filter. An error ends the thread.
pub type ThreadStart = Box<dyn FnOnce() -> io::Result<()> + Send>;

enum Request {
    Add { id: u32, worker: Box<dyn Worker>, interrupt: Arc<dyn Interrupt> },
    Remove { id: u32, handover: Arc<Handover> },
    Exit,
}

/// The worker did not stop: its thread is gone, or stuck in a system call.
#[derive(Debug, thiserror::Error)]
#[error("a device waits for the host: its thread does not answer in time")]
pub struct LoopStuck;

/// A worker in a loop.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkerId(u32);

/// Gives workers to a loop and takes them back; cheap to clone.
#[derive(Clone)]
pub struct IoHandle {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
    next_id: Arc<AtomicU32>,
    events: EventSender,
}

impl IoHandle {
    /// Tells the rest of the VMM that a device failed.
    pub fn report(&self, error: WorkerError) {
        // When the queue is full of other news, this one is lost; the driver knows all the same.
        let _ = self.events.send(DeviceEvent::Fault(error));
    }

    /// Hands over a worker; it heard as soon as the thread gets to it.
    pub fn add(&self, worker: Box<dyn Worker>, interrupt: Arc<dyn Interrupt>) -> WorkerId {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.request(Request::Add { id, worker, interrupt });
        WorkerId(id)
    }

    /// Stops a worker and waits for its queues.
    ///
    /// # Errors
    /// [`LoopStuck`] after `patience`, or when the thread has ended. The worker goes on then, as soon as its
    /// thread can, as if nothing had been asked.
    pub fn remove(&self, id: &WorkerId, patience: Duration) -> Result<Stopped, LoopStuck> {
        let handover = Arc::new(Handover::new());
        if !self.request(Request::Remove { id: id.0, handover: handover.clone() }) {
            return Err(LoopStuck);
        }
        handover.take(patience).ok_or(LoopStuck)
    }

    /// Ends the thread, after what was requested before.
    pub fn exit(&self) {
        self.request(Request::Exit);
    }

    /// `false` when the thread has ended.
    fn request(&self, request: Request) -> bool {
        let sent = self.requests.send(request).is_ok();
        let _ = self.wake.write(1);
        sent
    }
}

/// A worker and what the loop knows about it.
struct Slot {
    worker: Box<dyn Worker>,
    interrupt: Arc<dyn Interrupt>,
    fds: BTreeSet<RawFd>,
    /// It failed, and is only waiting to be removed.
    parked: bool,
}

/// A loop whose thread does not run yet.
pub struct IoLoop {
    name: String,
    epoll: Epoll,
    requests: Receiver<Request>,
    handle: IoHandle,
    slots: BTreeMap<u32, Slot>,
}

impl IoLoop {
    /// A loop that reports faults of its workers to `events`. `name` is the thread's, at most 15 bytes.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn new(name: &str, events: EventSender) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let token = u64::from(WAKE) << 32;
        let event = EpollEvent::new(EventSet::IN, token);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        let (sender, requests) = channel();
        let next_id = Arc::new(AtomicU32::new(WAKE + 1));
        let handle = IoHandle { requests: sender, wake, next_id, events };
        Ok(Self { name: name.to_owned(), epoll, requests, handle, slots: BTreeMap::new() })
    }

    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A handle to this loop, usable before and after [`Self::spawn`].
    pub fn handle(&self) -> IoHandle {
        self.handle.clone()
    }

    /// Starts the thread; `start` runs on it first. The thread ends with `start`'s error, with one
    /// of epoll, or after [`IoHandle::exit`].
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(mut self, start: ThreadStart) -> io::Result<JoinHandle<io::Result<()>>> {
        std::thread::Builder::new().name(self.name.clone()).spawn(move || {
            start()?;
            self.run()
        })
    }

    /// Runs on the calling thread, until it ends as [`Self::spawn`]'s.
    ///
    /// # Errors
    /// epoll's.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn(-1)?.is_some() {}
        Ok(())
    }

    /// Waits for events, at most `timeout` milliseconds (-1: for ever), and serves them; says how many
    /// there were. `None`: the thread is to end.
    ///
    /// # Errors
    /// epoll's.
    pub fn turn(&mut self, timeout: i32) -> io::Result<Option<usize>> {
        let mut ready = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(timeout, &mut ready) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        for event in &ready[..count] {
            let (id, token) = ((event.data() >> 32) as u32, event.data() as u32);
            if id != WAKE {
                self.dispatch(id, |worker, watcher| worker.handle(token, event.events(), watcher));
            } else if self.serve_requests() {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }

    /// Calls a worker; one that fails is parked until it is removed. An event may be left over from
    /// a worker that has just gone.
    fn dispatch(
        &mut self,
        id: u32,
        call: impl FnOnce(&mut dyn Worker, &mut Watcher<'_>) -> Result<(), WorkerError>,
    ) {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.parked) else { return };
        let mut watcher = Watcher { epoll: &self.epoll, id, fds: &mut slot.fds };
        if let Err(error) = call(slot.worker.as_mut(), &mut watcher) {
            watcher.clear();
            slot.parked = true;
            slot.interrupt.signal_needs_reset();
            self.handle.report(error);
        }
    }

    /// Serves what is requested; `true` when the thread is to end.
    fn serve_requests(&mut self) -> bool {
        let _ = self.handle.wake.read();
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Add { id, worker, interrupt } => {
                    let slot = Slot { worker, interrupt, fds: BTreeSet::new(), parked: false };
                    self.slots.insert(id, slot);
                    self.dispatch(id, |worker, watcher| worker.start(watcher));
                }
                Request::Remove { id, handover } => self.remove(id, &handover),
                Request::Exit => return true,
            }
        }
        false
    }

    /// Gives a worker's queues away, unless the one who asked has meanwhile given up.
    fn remove(&mut self, id: u32, handover: &Handover) {
        let Some(slot) = self.slots.get_mut(&id).filter(|_| handover.is_wanted()) else { return };
        slot.worker.quiesce();
        let (slots, epoll) = (&mut self.slots, &self.epoll);
        let given = handover.give(|| {
            let Some(mut slot) = slots.remove(&id) else { return Vec::new() };
            Watcher { epoll, id, fds: &mut slot.fds }.clear();
            slot.worker.stop()
        });
        if !given {
            self.dispatch(id, |worker, watcher| {
                watcher.clear();
                worker.start(watcher)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;
    use crate::virtio::ActiveQueue;
    use crate::virtio::testing::TestInterrupt;
    use std::sync::mpsc::{SyncSender, TryRecvError, sync_channel};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Counts notifications; fails at the third.
    struct Counter {
        input: EventFd,
        output: Sender<u64>,
    }

    impl Worker for Counter {
        fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
            watcher.add(&self.input, EventSet::IN, 5).unwrap();
            Ok(())
        }
        fn handle(&mut self, token: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
            assert_eq!(token, 5);
            let n = self.input.read().unwrap();
            if n == 3 {
                return Err(WorkerError { device: "counter", reason: "three".into() });
            }
            self.output.send(n).unwrap();
            Ok(())
        }
        fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
            vec![None, None]
        }
    }

    #[test]
    fn a_worker_runs_fails_once_and_comes_back() {
        let (sender, faults) = events::channel().unwrap();
        let io = IoLoop::new("test", sender).unwrap();
        let handle = io.handle();
        let input = EventFd::new(EFD_NONBLOCK).unwrap();
        let (output, results) = channel();
        let interrupt = Arc::new(TestInterrupt::default());
        let worker = Counter { input: input.try_clone().unwrap(), output };
        // Before the thread runs.
        let id = handle.add(Box::new(worker), interrupt.clone());
        let thread = io.spawn(Box::new(|| Ok(()))).unwrap();

        input.write(2).unwrap();
        assert_eq!(results.recv(), Ok(2));
        input.write(3).unwrap();
        while !interrupt.needs_reset() {
            std::thread::yield_now();
        }
        // Parked: nothing arrives any more, and stopping it still works.
        input.write(1).unwrap();
        assert_eq!(handle.remove(&id, PATIENCE).unwrap().len(), 2);
        assert!(results.recv().is_err(), "the worker and its sender are gone");
        assert!(matches!(faults.next(), Some(DeviceEvent::Fault(e)) if e.reason == "three"));
        assert!(faults.next().is_none());
        handle.exit();
        thread.join().unwrap().unwrap();
        assert!(handle.remove(&WorkerId(99), PATIENCE).is_err());
    }

    /// Blocks in `handle` or in `quiesce`, as a read of a slow disk or a busy file server does, until it is let
    /// go; says when it is started, when it handles and when it begins to stop.
    struct Slow {
        input: EventFd,
        blocks_at_once: bool,
        let_go: Receiver<()>,
        told: SyncSender<()>,
    }

    impl Worker for Slow {
        fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
            watcher.add(&self.input, EventSet::IN, 0).unwrap();
            self.told.send(()).unwrap();
            Ok(())
        }
        fn handle(&mut self, _: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
            self.input.read().unwrap();
            self.told.send(()).unwrap();
            if self.blocks_at_once {
                self.let_go.recv().unwrap();
            }
            Ok(())
        }
        fn quiesce(&mut self) {
            if !self.blocks_at_once {
                let _ = self.told.send(());
                self.let_go.recv().unwrap();
            }
        }
        fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
            vec![None]
        }
    }

    #[test]
    fn a_worker_that_lets_go_too_late_goes_on() {
        for blocks_at_once in [true, false] {
            let (sender, _faults) = events::channel().unwrap();
            let io = IoLoop::new("test", sender).unwrap();
            let handle = io.handle();
            let thread = io.spawn(Box::new(|| Ok(()))).unwrap();
            let input = EventFd::new(EFD_NONBLOCK).unwrap();
            let (release, let_go) = channel();
            let (told, heard) = sync_channel(9);
            let worker = Slow { input: input.try_clone().unwrap(), blocks_at_once, let_go, told };
            let id = handle.add(Box::new(worker), Arc::new(TestInterrupt::default()));
            heard.recv().unwrap();
            input.write(1).unwrap();
            heard.recv().unwrap();
            if blocks_at_once {
                assert!(handle.remove(&id, Duration::from_millis(50)).is_err());
            } else {
                // Until the thread has come to it in time.
                while heard.try_recv() == Err(TryRecvError::Empty) {
                    assert!(handle.remove(&id, Duration::from_millis(50)).is_err());
                }
            }
            release.send(()).unwrap();
            if !blocks_at_once {
                // It had begun to stop, and has to begin anew.
                heard.recv().unwrap();
            }
            // It is there, it works, and now it can be stopped.
            input.write(1).unwrap();
            heard.recv().unwrap();
            release.send(()).unwrap();
            assert_eq!(handle.remove(&id, PATIENCE).unwrap().len(), 1);
            assert_eq!(heard.try_recv().is_ok(), !blocks_at_once, "it has begun to stop");
            assert!(heard.try_recv().is_err(), "it was started once more");
            handle.exit();
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_thread_that_can_not_be_confined_does_not_run() {
        let (sender, _faults) = events::channel().unwrap();
        let io = IoLoop::new("test", sender).unwrap();
        let thread = io.spawn(Box::new(|| Err(io::ErrorKind::PermissionDenied.into()))).unwrap();
        assert!(thread.join().unwrap().is_err());
    }
}
