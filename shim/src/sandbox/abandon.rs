//! What the guest may still make after nobody waits for it any more.

use crate::error::Error;
use crate::guest::agent::Agent;
use std::time::{Duration, Instant};

/// How long a guest that has not made a container in time may take to be rid of it, and how often it is asked.
const ABANDON_PATIENCE: Duration = Duration::from_secs(120);
const ABANDON_PAUSE: Duration = Duration::from_millis(500);

/// Sees to it that a container, or an exec of it, is not in the guest either, which may have been too slow to say whether
/// it made it: its mounts are about to go, and its id may be used again.
pub(super) async fn abandon(agent: &Agent, id: &str, exec: &str) {
    let is_container = exec.is_empty();
    let end = Instant::now() + ABANDON_PATIENCE;
    while Instant::now() < end {
        // It may be in the making, and then can't be deleted yet.
        let deleted = if is_container {
            agent.delete_container(id, false).await
        } else {
            agent.delete_exec(id, exec).await
        };
        match deleted {
            Ok(()) | Err(Error::Ended(_)) => return,
            Err(error) if error.code() == ttrpc::Code::NOT_FOUND => return,
            Err(error) => tracing::debug!("abandon container {id} {exec}: {}", error.chain()),
        }
        let _ = agent.signal(id, exec, libc::SIGKILL as u32, is_container).await;
        tokio::time::sleep(ABANDON_PAUSE).await;
    }
    tracing::error!("container {id} {exec} may still be made in the guest");
}
