//! Kills for lack of memory, told while the container runs.

use super::Sandbox;
use crate::guest::agent::Agent;
use std::time::Duration;

/// Kills that come closer are told as one: the guest says when there are more.
const KILLS_TOLD_APART: Duration = Duration::from_secs(1);

/// Most that are told of a container while it runs, in case nobody ever takes the events.
const MOST_KILLS_TOLD: u32 = 1000;

impl Sandbox {
    /// Tells when processes of a container are killed for lack of memory; those that die with its init are
    /// told by `watch_init`, before its end.
    pub(super) async fn watch_memory(self, agent: Agent, id: String) {
        let mut seen = 0;
        for told in 1..=MOST_KILLS_TOLD {
            match agent.wait_out_of_memory(&id, seen).await {
                Ok(kills) if kills > seen => seen = kills,
                _ => return, // its init, or the guest, has ended
            }
            self.table().out_of_memory(&id, seen);
            if told == MOST_KILLS_TOLD {
                tracing::warn!("container {id}: {seen} out-of-memory kills: no more are told");
            }
            tokio::time::sleep(KILLS_TOLD_APART).await;
        }
    }
}
