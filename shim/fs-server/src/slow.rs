//! Requests that wait for the host's disk, carried out beside the thread that serves the others: who has what it wrote put
//! on the disk holds up nobody else. The rings stay with that thread, which is woken for each that is done.

use crate::confine;
use crate::file_system::Files;
use crate::memory::Regions;
use crate::queue_error::QueueError;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::Opcode;
use vm_memory::{Bytes, GuestMemoryLoadGuard};

/// How many can wait at the same time. A thread that waits for work costs some pages.
const THREADS: usize = 2;

/// Most that are under way; what comes beyond is carried out by who takes it, and so holds up the guest.
const MOST: usize = 64;

/// A request and the memory that it is in.
pub(crate) struct Request {
    pub chain: DescriptorChain<GuestMemoryLoadGuard<Regions>>,
    pub memory: GuestMemoryLoadGuard<Regions>,
}

impl Request {
    /// Whether it is one that may wait for the disk. The guest can change it afterwards: then a thread that is as confined
    /// as the one that was to do it carries out another.
    pub(crate) fn is_slow(&self) -> bool {
        /// Where the opcode is in a request.
        const OPCODE: u64 = 4;
        let Some(first) = self.chain.clone().next().filter(|d| !d.is_write_only()) else {
            return false;
        };
        let at = first.addr().0.checked_add(OPCODE).filter(|_| first.len() >= 8);
        let opcode = at.map(|at| self.memory.read_obj::<u32>(vm_memory::GuestAddress(at)));
        let Some(Ok(opcode)) = opcode else { return false };
        let slow = [
            Opcode::Fsync,
            Opcode::Fsyncdir,
            Opcode::Syncfs,
            Opcode::Fallocate,
            Opcode::CopyFileRange,
        ];
        slow.into_iter().any(|slow| slow as u32 == opcode)
    }

    /// Carries it out; gives the length of the answer, bytes.
    pub(crate) fn carry_out(self, files: &Files) -> Result<u32, QueueError> {
        let reader = Reader::new(&self.memory, self.chain.clone())?;
        let writer = Writer::new(&self.memory, self.chain)?;
        let len = files.answer(reader, writer)?;
        u32::try_from(len).map_err(|_| QueueError::AnswerLength)
    }
}

struct Job {
    queue: usize,
    request: Request,
    files: Arc<Files>,
}

/// One that was carried out.
pub(crate) struct Done {
    /// Index of its queue.
    pub queue: usize,
    /// Of its descriptor chain.
    pub head: u16,
    pub outcome: Result<u32, QueueError>,
}

/// The threads for slow requests.
pub struct Slow {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    wake: Arc<File>,
    under_way: usize,
}

impl Slow {
    /// Starts the threads, which confine themselves before this comes back.
    ///
    /// # Errors
    /// One can't be started or confined.
    pub fn start() -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(File::from(wake.context("cannot make an eventfd")?));
        let (jobs, waiting) = channel();
        let (finished, done) = channel();
        let (confined, is_confined) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let worker = Worker {
                waiting: Arc::clone(&waiting),
                finished: finished.clone(),
                wake: Arc::clone(&wake),
            };
            let confined = confined.clone();
            let work = move || {
                let confine = || -> Result<()> {
                    // A working directory and an umask of its own, which some requests change for a moment.
                    unshare(CloneFlags::CLONE_FS).context("unshare")?;
                    Ok(confine::syscall_filter()?.apply()?)
                };
                let outcome = confine();
                let is_confined = outcome.is_ok();
                let _ = confined.send(outcome);
                if is_confined {
                    worker.work();
                }
            };
            thread::Builder::new()
                .name("slow".into())
                .spawn(work)
                .context("cannot start a thread")?;
        }
        for _ in 0..THREADS {
            is_confined.recv().context("a thread ended")??;
        }
        Ok(Self { jobs, done, wake, under_way: 0 })
    }

    /// What is readable when one is done.
    pub(crate) fn notifier(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Has a request of this queue carried out, unless there are too many: then it comes back.
    pub(crate) fn begin(
        &mut self,
        queue: usize,
        request: Request,
        files: &Arc<Files>,
    ) -> Option<Request> {
        if self.under_way >= MOST {
            return Some(request);
        }
        let job = Job { queue, request, files: Arc::clone(files) };
        match self.jobs.send(job) {
            Ok(()) => {
                self.under_way += 1;
                None
            }
            Err(unsent) => Some(unsent.0.request),
        }
    }

    /// What has been done.
    pub(crate) fn done(&mut self) -> Vec<Done> {
        let _ = (&*self.wake).read(&mut [0; 8]);
        let done: Vec<_> = self.done.try_iter().collect();
        self.under_way -= done.len();
        done
    }

    /// Waits for all that are under way.
    pub(crate) fn settle(&mut self) -> Vec<Done> {
        let done: Vec<_> = self.done.iter().take(self.under_way).collect();
        self.under_way = 0;
        done
    }
}

struct Worker {
    waiting: Arc<Mutex<Receiver<Job>>>,
    finished: Sender<Done>,
    wake: Arc<File>,
}

impl Worker {
    /// Until nobody can ask any more.
    fn work(&self) {
        loop {
            let job = match self.waiting.lock() {
                Ok(waiting) => waiting.recv(),
                Err(_) => return,
            };
            let Ok(Job { queue, request, files }) = job else { return };
            let head = request.chain.head_index();
            let outcome = request.carry_out(&files);
            if self.finished.send(Done { queue, head, outcome }).is_err() {
                return;
            }
            // A counter at its limit is a notification that has not been seen yet.
            let _ = (&*self.wake).write(&1u64.to_ne_bytes());
        }
    }
}
