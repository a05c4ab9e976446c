//! Signals, and that a container which is killed has an end.
//!
//! It is the guest that kills a container's processes and tells of their end. One that hangs or lies does neither, and
//! nobody could ever remove the container, nor its pod. So its machine is stopped when a kill has had no effect in time:
//! that is an end of all in it, and it is the host that sees it. Nothing less would do: a container that were only said to
//! have ended could still write to its volumes while its successor does. One that writes has longer, as what it has written
//! before would be lost with the machine.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::sandbox::patience::Patience;
use crate::sandbox::table::Phase;
use std::time::Duration;
use tokio::time::Instant;

/// How long a container that is killed may take to end, where all of the sandbox ends with it.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(30);

/// The same where others run beside it, which would end as well. It is less than the two minutes for which engines of
/// Kubernetes wait.
pub(super) const END_PATIENCE_BESIDE_OTHERS: Duration = Duration::from_secs(90);

/// How long it may take as long as the machine writes, which is less than those two minutes as well, and how far apart it is
/// looked for that. Beside others nobody can tell who writes.
const WRITE_PATIENCE: Duration = Duration::from_secs(110);
const LOOK: Duration = Duration::from_secs(5);

/// Signals that end a container that has not been started, as they end what waits for that on runc.
const ENDS: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGABRT, libc::SIGTERM];

impl Sandbox {
    /// Sends a signal to a process; with `all` to every process of the container. A container that is killed ends, if need
    /// be with its machine.
    ///
    /// # Errors
    /// [`Error::NotFound`] also for a process that has ended; it was not started, or the agent fails.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let kill = libc::SIGKILL as u32;
        let signal = match self.state(id, exec)?.phase {
            Phase::Stopped(_) => return Err(Error::NotFound("process already finished:".into())),
            Phase::Created if !exec.is_empty() => {
                return Err(Error::FailedPrecondition("process not created".into()));
            }
            // What waits there for the start is the first process of its pid namespace, which nothing else ends.
            Phase::Created | Phase::Paused { started: false }
                if ENDS.contains(&signal.cast_signed()) =>
            {
                kill
            }
            _ => signal,
        };
        let agent = self.agent().await?;
        if exec.is_empty() && signal == kill {
            return self.kill_init(&agent, id, all).await;
        }
        agent.signal(id, exec, signal, all && exec.is_empty()).await
    }

    /// Kills a container's init, with `all` every process of it; its end comes also if the guest does nothing.
    ///
    /// # Errors
    /// The agent's, but for the one that it did not answer.
    pub(super) async fn kill_init(&self, agent: &Agent, id: &str, all: bool) -> Result<()> {
        // Before the call, whose caller may go away.
        tokio::spawn(self.clone().see_it_end(id.to_owned()));
        match agent.signal(id, "", libc::SIGKILL as u32, all).await {
            Err(error @ Error::Deadline { .. }) => {
                if !self.runs_beside_others(id) {
                    self.0.vm.stop(format!("killing container {id}: {error}"));
                }
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Whether the sandbox has reasons to go on when the container ends.
    fn runs_beside_others(&self, id: &str) -> bool {
        // The first container of a pod with a pause container is that; it keeps nothing going.
        id != self.id() && self.table().has_alive_but([id, self.id()])
    }

    async fn see_it_end(self, id: String) {
        let exit = self.table().process(&id, "").map(|init| init.exit());
        let Ok(mut exit) = exit else { return };
        let (usual, most) = if self.runs_beside_others(&id) {
            (END_PATIENCE_BESIDE_OTHERS, END_PATIENCE_BESIDE_OTHERS)
        } else {
            (END_PATIENCE, WRITE_PATIENCE)
        };
        let patience = Patience { usual, most, look: LOOK };
        let begin = Instant::now();
        let end = exit.wait_for(Option::is_some);
        if patience.wait(end, || self.written()).await.is_none() {
            let seconds = begin.elapsed().as_secs();
            self.0.vm.stop(format!("container {id} was killed and has not ended in {seconds} s"));
        }
    }
}
