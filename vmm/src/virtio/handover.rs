//! Giving a worker's queues from its thread to one who asked, and who may have stopped waiting.

use super::ActiveQueue;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a worker leaves behind: its queues.
pub type Stopped = Vec<Option<ActiveQueue>>;

enum State {
    Wanted,
    Given(Stopped),
    Abandoned,
}

/// One request for a worker's queues. Either they are given and taken, or the worker keeps them.
pub(super) struct Handover {
    state: Mutex<State>,
    given: Condvar,
}

impl Handover {
    /// Somebody waits.
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State::Wanted), given: Condvar::new() }
    }

    /// The one who asked waits; `None` when it took too long: then they will not be given any more.
    pub(super) fn take(&self, patience: Duration) -> Option<Stopped> {
        let wanted = |state: &mut State| matches!(state, State::Wanted);
        let waited = self.given.wait_timeout_while(self.lock(), patience, wanted);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Abandoned) {
            State::Given(queues) => Some(queues),
            State::Wanted | State::Abandoned => None,
        }
    }

    /// Whether somebody still waits.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.lock(), State::Wanted)
    }

    /// Gives them; `stop` is not called, and the answer is `false`, if nobody waits any more.
    pub(super) fn give(&self, stop: impl FnOnce() -> Stopped) -> bool {
        let mut state = self.lock();
        let wanted = matches!(*state, State::Wanted);
        if wanted {
            *state = State::Given(stop());
            self.given.notify_all();
        }
        wanted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
