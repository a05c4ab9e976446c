//! The loop of virtio-blk.

use super::NAME;
use super::data_path::DataPath;
use super::helpers::Helpers;
use crate::virtio::{ActiveQueue, Watcher, Worker, WorkerError};
use std::io;
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

/// Runs in the loop of the disk, which is one of its threads.
pub(super) struct BlkWorker {
    pub(super) path: Arc<DataPath>,
    pub(super) helpers: Arc<Helpers>,
}

/// What the loop watches.
const REQUESTS: u32 = 0;
const FAILED: u32 = 1;

impl Worker for BlkWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        let mut start = || {
            if let Some(queue) = &*self.path.queue() {
                watcher.add(&queue.notify, EventSet::IN | EventSet::EXCLUSIVE, REQUESTS)?;
                watcher.add(self.helpers.failed(), EventSet::IN, FAILED)?;
                self.helpers.start(&self.path, &queue.notify)?;
            }
            Ok(())
        };
        start().map_err(|e: io::Error| WorkerError::new(NAME, &e))?;
        self.handle(REQUESTS, 0, watcher)
    }

    fn handle(&mut self, token: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        let failure = if token == FAILED { self.helpers.failure() } else { None };
        failure.map_or_else(|| self.path.serve(), Err).map_err(|e| WorkerError::new(NAME, &e))
    }

    /// Until then a disk of the host's that does not answer keeps what else there is of this one waiting.
    fn quiesce(&mut self) {
        self.helpers.stop();
        if let Some(queue) = &*self.path.queue() {
            self.helpers.forget(&queue.notify);
        }
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        vec![self.path.queue().take()]
    }
}
