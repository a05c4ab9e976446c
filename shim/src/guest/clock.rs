//! Keeps the guest's wall clock by the host's, for as long as the guest needs it.

use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use std::time::Duration;

/// Between two messages. The clocks of a guest and its host part by some milliseconds in that time, or by as much
/// as the host was suspended.
const INTERVAL: Duration = Duration::from_secs(60);

/// To one that sees the host's clock itself: it may lose it, as when the host's own time source changes.
const RARELY: Duration = Duration::from_secs(600);

/// Tells the time until the guest is gone.
pub async fn keep(agent: Agent) {
    let mut next = Some(INTERVAL);
    while let Some(interval) = next {
        tokio::time::sleep(interval).await;
        next = after(&agent.set_clock().await);
    }
}

/// When the guest is to be told again, by what it said to it. One that was too busy to answer is.
fn after(answer: &Result<bool>) -> Option<Duration> {
    match answer {
        Ok(false) => Some(RARELY),
        Err(Error::Ended(_)) => None,
        _ => Some(INTERVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_end_ends_it() {
        assert_eq!((after(&Ok(true)), after(&Ok(false))), (Some(INTERVAL), Some(RARELY)));
        assert_eq!(after(&Err(Error::Deadline { call: "SetClock", seconds: 10 })), Some(INTERVAL));
        assert_eq!(after(&Err(Error::Ended("SetClock: closed".into()))), None);
    }
}
