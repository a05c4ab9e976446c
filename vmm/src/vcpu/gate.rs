//! The gate before which paused vCPUs wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long vCPUs may take to stop: longer than any exit is served.
const PATIENCE: Duration = Duration::from_secs(10);

/// A vCPU did not stop within [`PATIENCE`].
#[derive(Debug, thiserror::Error)]
#[error("a vCPU does not stop")]
pub struct StuckVcpu;

struct State {
    open: bool,
    /// How many vCPUs the machine has at the moment: those from this number on wait.
    admitted: usize,
    waiting: usize,
    /// Threads that will never come again.
    ended: usize,
}

impl State {
    fn lets_through(&self, id: usize) -> bool {
        self.open && id < self.admitted
    }
}

/// Closed at first. Open: vCPUs may run, those that are admitted.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate that will let the first `admitted` vCPUs through.
    pub fn new(admitted: usize) -> Self {
        let state = State { open: false, admitted, waiting: 0, ended: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// From now on the first `count` vCPUs may run; others that run have to be kicked.
    pub fn admit(&self, count: usize) {
        self.lock().admitted = count;
        self.changed.notify_all();
    }

    /// Lets vCPUs run.
    pub fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Closes the gate; whoever runs has to be kicked.
    pub fn close(&self) {
        self.lock().open = false;
    }

    /// Whether vCPUs may run.
    pub fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Whether vCPU `id` may run.
    pub(super) fn lets_through(&self, id: usize) -> bool {
        self.lock().lets_through(id)
    }

    /// Waits until `count` vCPUs stand before the closed gate or have ended: none of them runs then.
    ///
    /// # Errors
    /// [`StuckVcpu`].
    pub fn wait_for_all(&self, count: usize) -> Result<(), StuckVcpu> {
        let missing = |state: &mut State| state.waiting + state.ended < count;
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, missing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if missing(&mut state) { Err(StuckVcpu) } else { Ok(()) }
    }

    /// A vCPU's thread ends.
    pub(super) fn leave(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// vCPU `id` waits here until it may run.
    pub(super) fn wait(&self, id: usize) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        let waited = self.changed.wait_while(state, |state| !state.lets_through(id));
        waited.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
