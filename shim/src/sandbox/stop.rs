//! Ending a sandbox.

use super::network::Network;
use super::{Readiness, Sandbox};
use crate::error::Error;
use crate::host::cgroup::Made;
use crate::milestone;
use crate::sandbox::patience::Patience;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// How long the guest may take to sync and power off: longer while it is seen to write, but less than systemd waits for
/// who ends with the host (90 s). containerd waits 3 s for a Shutdown, and goes on without its answer.
const SHUTDOWN: Patience = Patience {
    usual: Duration::from_secs(2),
    most: Duration::from_secs(30),
    look: Duration::from_secs(1),
};

/// How long the processes that stand for containers may take to end when their machine has.
const STAND_IN_PATIENCE: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Has the host's cgroup stay when the sandbox ends, for whoever removes what this gives; `None`: there is none that
    /// could.
    pub fn keep_cgroup(&self) -> Option<Made> {
        self.0.cgroup.as_ref().and_then(|cgroup| cgroup.keep())
    }

    /// Ends the sandbox: the guest syncs and powers off, or is ended; then nothing of it is left.
    ///
    /// Any number of callers; all return when it is done, and it is also if none of them waits.
    pub async fn stop(&self) {
        let end = || {
            let (done, told) = watch::channel(());
            let sandbox = self.clone();
            tokio::spawn(async move {
                sandbox.end().await;
                drop(done);
            });
            told
        };
        let mut told = self.0.stopped.get_or_init(end).clone();
        // Nothing is sent: it is closed.
        while told.changed().await.is_ok() {}
    }

    async fn end(&self) {
        milestone::mark("sandbox-stop", self.id());
        self.0.stopping.store(true, Ordering::Relaxed);
        let ready = self.0.ready.borrow().clone();
        if let Readiness::Ready(agent) = ready {
            let asked = async {
                match agent.shutdown(SHUTDOWN.most).await {
                    // Synced: nothing is lost if the machine goes before its guest has wound down.
                    Ok(()) => {}
                    Err(Error::Ended(_)) => drop(self.0.vm.ended().await),
                    Err(error) => tracing::warn!("shutdown: {}", error.chain()),
                }
            };
            if SHUTDOWN.wait(asked, || self.written()).await.is_none() {
                tracing::warn!("the guest did not power off");
            }
        }
        self.0.vm.stop("the sandbox was stopped");
        // Both take their time.
        let step_out = async {
            if let Some(cgroup) = self.0.cgroup.clone() {
                let stepped = tokio::task::spawn_blocking(move || cgroup.step_out()).await;
                if let Err(error) = stepped.unwrap_or_else(|e| Err(e.into())) {
                    tracing::warn!("leave the cgroup: {error}");
                }
            }
        };
        tokio::join!(self.0.vm.ended(), step_out);
        // They are in the cgroup, which goes next.
        if !self.0.stand_ins.gone(STAND_IN_PATIENCE).await {
            tracing::warn!("stop: processes that stand for containers do not end");
        }
        let undo = self.0.undo.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (what, error) in undo.unwrap_or_default().run_aside().await {
            tracing::warn!("stop: {what}: {error}");
        }
        // A stopped pod may be kept for long, and its network namespace is not to be.
        *self.0.network.lock().await = Network::Loopback;
        self.0.resolver.forget();
        self.table().close();
        milestone::mark("sandbox-stopped", self.id());
    }
}
