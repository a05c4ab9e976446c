//! Every acquisition pushes its undo; rollback and delete run the same list.

use std::io;
use std::time::Duration;

/// How long one list may take: a file system that is unmounted writes what it holds first.
const PATIENCE: Duration = Duration::from_secs(60);

/// What takes back one acquisition.
type Step = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A list of undo steps. Dropped, it runs them, last acquired first: an early return rolls back.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(String, Step)>,
}

impl Undo {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the undo of something just acquired; `what` names it in errors.
    pub fn push(
        &mut self,
        what: impl Into<String>,
        step: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        self.steps.push((what.into(), Box::new(step)));
    }

    /// Runs all steps, last acquired first. A failing step does not stop the others.
    pub fn run(mut self) -> Vec<(String, io::Error)> {
        self.unwind()
    }

    /// The same on a thread that may wait: a mount that hangs must not hold up who else this one serves, nor the caller
    /// for ever. What is not done in time goes on by itself.
    pub async fn run_aside(self) -> Vec<(String, io::Error)> {
        self.run_within(PATIENCE).await
    }

    async fn run_within(self, patience: Duration) -> Vec<(String, io::Error)> {
        let steps: Vec<_> = self.steps.iter().map(|(what, _)| what.as_str()).collect();
        let all = steps.join(", ");
        match tokio::time::timeout(patience, tokio::task::spawn_blocking(|| self.run())).await {
            Ok(failed) => failed.unwrap_or_default(),
            Err(late) => vec![(format!("one of: {all}"), late.into())],
        }
    }

    fn unwind(&mut self) -> Vec<(String, io::Error)> {
        let mut failed = Vec::new();
        while let Some((what, step)) = self.steps.pop() {
            if let Err(error) = step() {
                failed.push((what, error));
            }
        }
        failed
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for (what, error) in self.unwind() {
            tracing::warn!("undo {what}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn list(log: &Arc<Mutex<Vec<u8>>>) -> Undo {
        let mut undo = Undo::new();
        for n in 1..=3 {
            let log = log.clone();
            undo.push(format!("step {n}"), move || {
                log.lock().unwrap().push(n);
                if n == 2 { Err(io::Error::other("no")) } else { Ok(()) }
            });
        }
        undo
    }

    #[test]
    fn steps_run_backwards_and_failures_are_all_told() {
        let log = Arc::default();
        let failed = list(&log).run();
        assert_eq!(*log.lock().unwrap(), [3, 2, 1]);
        assert_eq!(failed.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["step 2"]);
    }

    #[tokio::test]
    async fn a_step_that_waits_holds_up_nobody_else() {
        let (go_on, wait) = std::sync::mpsc::channel();
        let mut undo = Undo::new();
        let patience = std::time::Duration::from_secs(20);
        undo.push("wait", move || wait.recv_timeout(patience).map_err(io::Error::other));
        let others = async { go_on.send(()).unwrap() };
        let (failed, ()) = tokio::join!(undo.run_aside(), others);
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[tokio::test]
    async fn a_step_that_hangs_is_not_waited_for_for_ever() {
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let mut undo = Undo::new();
        undo.push("unmount", move || {
            let _ = wait.recv();
            Ok(())
        });
        let failed = undo.run_within(Duration::from_millis(20)).await;
        assert_eq!(failed[0].1.kind(), io::ErrorKind::TimedOut);
        assert!(failed[0].0.contains("unmount"));
        drop(go_on);
    }

    #[test]
    fn an_early_return_rolls_back() {
        let log = Arc::default();
        drop(list(&log));
        assert_eq!(*log.lock().unwrap(), [3, 2, 1]);
    }
}
