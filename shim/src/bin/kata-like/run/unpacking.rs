//! An image's unpacking, on a thread that is told to stop and waited for, since what it makes is removed after it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// The side of who waits.
pub(super) struct Unpacking {
    stop: Arc<AtomicBool>,
    /// Closed when the worker is gone.
    ended: mpsc::Receiver<Infallible>,
}

/// The side of the thread, which has this as long as it makes anything.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    _ended: mpsc::Sender<Infallible>,
}

/// Both sides.
pub(super) fn pair() -> (Unpacking, Worker) {
    let (stop, (sender, ended)) = (Arc::<AtomicBool>::default(), mpsc::channel(1));
    (Unpacking { stop: stop.clone(), ended }, Worker { stop, _ended: sender })
}

impl Unpacking {
    /// Tells the thread to stop, if there is one still, and waits until it has, or until `insisted`: it may be in a
    /// read that never ends.
    pub(super) async fn end(mut self, insisted: impl Future) {
        self.stop.store(true, Ordering::Relaxed);
        tokio::select! {
            // Nothing is ever sent: this is the worker's end.
            _ = self.ended.recv() => {}
            _ = insisted => tracing::warn!("what was unpacked is left to the next run"),
        }
    }
}

impl Worker {
    /// Set when the thread is to stop.
    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Allowance;
    use std::future::{pending, ready};
    use std::io::{Read as _, repeat, sink};
    use std::time::Duration;

    #[tokio::test]
    async fn who_ends_an_unpacking_waits_until_its_thread_makes_nothing_more() {
        let (unpacking, worker) = pair();
        let scratch = tempfile::tempdir().unwrap();
        let (path, last) = (scratch.path().join("file"), Duration::from_millis(300));
        let thread = tokio::task::spawn_blocking(move || {
            let allowance = Allowance::new(u64::MAX).until(worker.stop());
            let endless = std::io::copy(&mut allowance.of(repeat(0).by_ref()), &mut sink());
            std::thread::sleep(last);
            std::fs::write(path, "made late").unwrap();
            drop(worker);
            endless
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        unpacking.end(pending::<()>()).await;
        std::fs::remove_file(scratch.path().join("file")).unwrap();
        assert!(thread.await.unwrap().unwrap_err().to_string().contains("interrupted"));
    }

    #[tokio::test]
    async fn one_that_never_began_or_has_ended_is_not_waited_for() {
        let (unpacking, worker) = pair();
        drop(worker);
        unpacking.end(pending::<()>()).await;
    }

    #[tokio::test]
    async fn who_insists_does_not_wait() {
        let (unpacking, worker) = pair();
        unpacking.end(ready(())).await;
        assert!(worker.stop().load(Ordering::Relaxed));
    }
}
