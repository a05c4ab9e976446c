//! The command lines of a container's processes.
//!
//! A process chooses where in its memory its command line lies: where a file system of its own makes up what is
//! there, who reads it can wait for ever. So a thread reads, one a container at most, and is waited for a while.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the reading is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of one container.
#[derive(Debug, Default)]
pub struct Commands {
    reading: Arc<AtomicBool>,
}

impl Commands {
    /// What `read` gives for each pid; `None` when it takes too long, or has not come back from an earlier call.
    pub async fn of(
        &self,
        pids: Vec<i32>,
        read: impl Fn(i32) -> String + Send + 'static,
    ) -> Option<Vec<String>> {
        if self.reading.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (sender, told) = oneshot::channel();
        if self.start(move || sender.send(pids.into_iter().map(read).collect())).is_err() {
            self.reading.store(false, Ordering::Release);
            return None;
        }
        tokio::time::timeout(PATIENCE, told).await.ok()?.ok()
    }

    fn start<T>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<()> {
        let reading = Arc::clone(&self.reading);
        let thread = move || {
            // Nobody may wait any more.
            let _ = work();
            reading.store(false, Ordering::Release);
        };
        std::thread::Builder::new().name("commands".to_owned()).spawn(thread).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_reading_that_hangs_is_given_up_and_not_begun_twice() {
        let commands = Commands::default();
        let (let_go, hangs) = mpsc::channel::<()>();
        let hanging = move |_| hangs.recv().map(|()| String::new()).unwrap_or_default();
        assert_eq!(commands.of(vec![1], hanging).await, None);
        assert_eq!(commands.of(vec![1], |_| "read".to_owned()).await, None);
        drop(let_go);
        while commands.reading.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let read = commands.of(vec![1, 2], |pid| pid.to_string()).await;
        assert_eq!(read, Some(vec!["1".to_owned(), "2".to_owned()]));
    }
}
