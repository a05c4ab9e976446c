//! The thread that starts others while the machine runs: all but it are confined to what needs no new threads.
//!
//! It exists, and takes requests, before it runs, as a loop does: see [`super::io_loop`].

use super::io_loop::ThreadStart;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// What a thread does after it was confined.
pub type Job = Box<dyn FnOnce() + Send>;

/// Called first on each new thread: applies its seccomp filter. An error ends the thread.
pub type Confine = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

struct Request {
    name: &'static str,
    job: Job,
    answer: SyncSender<io::Result<()>>,
}

/// Has threads started; cheap to clone.
#[derive(Clone)]
pub struct Threads(Sender<Request>);

impl Threads {
    /// Starts a thread with this name, at most 15 bytes.
    ///
    /// # Errors
    /// When no thread can be started; `job` is dropped then.
    pub fn start(&self, name: &'static str, job: Job) -> io::Result<()> {
        let (answer, answered) = sync_channel(1);
        let gone = || io::Error::other("nobody starts threads any more");
        self.0.send(Request { name, job, answer }).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// The one that starts them, whose own thread does not run yet.
pub struct Starter {
    requests: Receiver<Request>,
    threads: Threads,
}

impl Default for Starter {
    fn default() -> Self {
        let (sender, requests) = channel();
        Self { requests, threads: Threads(sender) }
    }
}

impl Starter {
    /// To ask it by, before and after [`Self::spawn`].
    pub fn threads(&self) -> Threads {
        self.threads.clone()
    }

    /// Starts its own thread, on which `start` runs first; `confine` runs first on each that it starts. It ends with
    /// `start`'s error, or when nobody can ask it any more.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(
        self,
        start: ThreadStart,
        confine: Confine,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let Self { requests, threads } = self;
        drop(threads);
        std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
            start()?;
            for Request { name, job, answer } in requests {
                let confine = confine.clone();
                let thread = std::thread::Builder::new().name(name.to_owned());
                let started = thread.spawn(move || {
                    if confine().is_ok() {
                        job();
                    }
                });
                // Nobody waits when the one who asked has ended.
                let _ = answer.send(started.map(drop));
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn threads_are_confined_before_they_do_anything() {
        let starter = Starter::default();
        let (threads, works) = (starter.threads(), Arc::new(AtomicBool::new(true)));
        let confine = works.clone();
        let confine = move || {
            let works = confine.load(Ordering::SeqCst);
            works.then_some(()).ok_or_else(|| io::ErrorKind::PermissionDenied.into())
        };
        let own = starter.spawn(Box::new(|| Ok(())), Arc::new(confine)).unwrap();
        let (told, heard) = channel();
        let tell = told.clone();
        threads.start("first", Box::new(move || tell.send(1).unwrap())).unwrap();
        assert_eq!(heard.recv(), Ok(1));
        works.store(false, Ordering::SeqCst);
        threads.start("second", Box::new(move || told.send(2).unwrap())).unwrap();
        assert!(heard.recv().is_err(), "it was not confined, and ran");
        drop(threads);
        own.join().unwrap().unwrap();
    }

    #[test]
    fn without_its_thread_nothing_is_started() {
        let starter = Starter::default();
        let threads = starter.threads();
        let own = starter
            .spawn(Box::new(|| Err(io::ErrorKind::PermissionDenied.into())), Arc::new(|| Ok(())));
        assert!(own.unwrap().join().unwrap().is_err());
        assert!(threads.start("none", Box::new(|| ())).is_err());
    }
}
