//! Until when a caller waits.

use std::time::{Duration, Instant};

/// How long a caller is taken to wait who doesn't say.
const USUAL: Duration = Duration::from_secs(60);

/// Most that is kept of the caller's time for undoing and answering.
const MARGIN: Duration = Duration::from_secs(5);

/// When to give up, so that the caller hears of it while it waits, and what it was told has failed is undone.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    patience: Duration,
}

impl Deadline {
    /// Of a caller who waits that long from now; zero: it doesn't say.
    pub fn of_caller(waits: Duration) -> Self {
        let waits = if waits.is_zero() { USUAL } else { waits };
        let patience = waits.saturating_sub(MARGIN.min(waits / 8));
        // One that is out of the clock's reach is far enough away in a century.
        let at = Instant::now().checked_add(patience);
        let century = Duration::from_secs(100 * 365 * 86400);
        Self { at: at.unwrap_or_else(|| Instant::now() + century), patience }
    }

    /// The moment.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// How long there was from the beginning, seconds.
    pub fn seconds(&self) -> u64 {
        self.patience.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_the_callers_time_is_kept_for_the_answer() {
        let seconds = |waits| Deadline::of_caller(Duration::from_secs(waits)).seconds();
        assert_eq!([0, 8, 60, 600].map(seconds), [55, 7, 55, 595]);
        let ever = Deadline::of_caller(Duration::MAX);
        assert!(ever.at() > Instant::now() + Duration::from_secs(1 << 30));
    }
}
