//! Keeps the guest's wall clock by the host's, for as long as the guest needs it.

use crate::guest::agent::Agent;
use std::time::Duration;

/// Between two messages. The clocks of a guest and its host part by some milliseconds in that time, or by as much
/// as the host was suspended.
const INTERVAL: Duration = Duration::from_secs(60);

/// Tells the time until the guest says that it sees the host's clock itself, or is gone.
pub async fn keep(agent: Agent) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !matches!(agent.set_clock().await, Ok(true)) {
            return;
        }
    }
}
