//! Host processes that stand for containers: one for each container of a pod but the pause container, for which, as for
//! a container of no pod, the VMM stands.
//!
//! Engines tell containers by pids of the host: `kubectl debug --target` names a container's PID namespace by
//! `/proc/PID/ns/pid`, and `kill -9 PID` ends a container. A stand-in does nothing and has nothing: no descriptor, no
//! privilege, an empty root (`bin/kata-like-stand-in.rs`). It is in the sandbox's cgroup and the pod's network
//! namespace, ends with its container, and with it its container ends; the kernel kills it when this process ends, so
//! a clean-up after a crash need not know of it.
//!
//! A program of its own: a fork of this process would keep a copy of what this process changes.

use super::Sandbox;
use super::network::Network;
use crate::error::{Error, Result};
use crate::host::overhead::{self, Usage};
use crate::host::persist::ProcessId;
use crate::oci::plan::shared;
use crate::oci::pod::Part;
use crate::vm::{self, Child};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Containers by the pids that stand for them, from the start of each process until it has been waited for: so a pid in
/// here is no other process's.
type Living = Arc<watch::Sender<BTreeMap<u32, String>>>;

/// Those of a sandbox.
pub(super) struct StandIns {
    program: PathBuf,
    uid: u32,
    living: Living,
}

impl StandIns {
    /// None yet; they run this program as this user, and group.
    pub fn new(program: PathBuf, uid: u32) -> Self {
        Self { program, uid, living: Arc::default() }
    }

    /// The container that a process stands for.
    pub fn container(&self, pid: u32) -> Option<String> {
        self.living.borrow().get(&pid).cloned()
    }

    /// What each that has not ended uses of the host.
    pub fn usage(&self) -> Vec<Usage> {
        let pids: Vec<_> = self.living.borrow().keys().copied().collect();
        let of = |pid: u32| overhead::of(ProcessId::of(pid.cast_signed()).ok()?).ok();
        pids.into_iter().filter_map(of).collect()
    }

    /// Waits until there is none; gives whether that was within `patience`.
    pub async fn gone(&self, patience: Duration) -> bool {
        let mut living = self.living.subscribe();
        let gone = living.wait_for(BTreeMap::is_empty);
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    async fn start(&self, id: &str, network: Option<OwnedFd>) -> Result<StandIn> {
        let uid = self.uid.to_string();
        let child = vm::stand_in(&self.program, &[uid.as_ref()], network).await?;
        let pid = child.pid().cast_unsigned();
        self.living.send_modify(|living| drop(living.insert(pid, id.to_owned())));
        Ok(StandIn { pid, child: Some(child), living: self.living.clone() })
    }
}

/// One; dropped, it is killed.
pub(super) struct StandIn {
    pid: u32,
    child: Option<Child>,
    living: Living,
}

impl StandIn {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it, and waits for its end.
    pub async fn end(mut self) {
        if let Some(child) = self.child.take() {
            end(child, self.pid, &self.living).await;
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let (pid, living) = (self.pid, self.living.clone());
            tokio::spawn(async move { end(child, pid, &living).await });
        }
    }
}

async fn end(mut child: Child, pid: u32, living: &Living) {
    if let Err(error) = child.kill().await {
        tracing::warn!("process {pid}, which stands for a container: {error}");
    }
    living.send_modify(|living| drop(living.remove(&pid)));
}

/// The end of one that somebody else has ended; never, if there is none. Its pid is told until its container has ended,
/// and stays its own so long.
pub(super) async fn ended(stand_in: Option<&StandIn>) {
    if let Some(StandIn { child: Some(child), .. }) = stand_in
        && child.exited().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

impl Sandbox {
    /// Starts the process that stands for container `id`, where that is not the VMM.
    ///
    /// # Errors
    /// It can't be started, or the sandbox has ended.
    pub(super) async fn stand_in(&self, id: &str, part: Part) -> Result<Option<StandIn>> {
        if part != Part::Member {
            return Ok(None);
        }
        // From there on this process is in the cgroup, which its child inherits.
        self.agent().await?;
        let network = self.network_of_pod().await?;
        self.0.stand_ins.start(id, network).await.map(Some)
    }

    /// The host's network namespace that is the pod's: the VMM's, where it was given none.
    async fn network_of_pod(&self) -> Result<Option<OwnedFd>> {
        let network = self.0.network.lock().await;
        let found = match &*network {
            Network::Namespace { namespace, .. } => namespace.as_fd().try_clone_to_owned(),
            Network::Undecided | Network::Loopback => match shared::network_of(self.pid()) {
                Some(path) => File::open(path).map(Into::into),
                None => return Ok(None),
            },
        };
        found.map(Some).map_err(Error::system("open the pod's network namespace"))
    }
}
