//! The data path of virtio-net: the two queues and the tap between them.

use super::rx::Receiver;
use super::tx::Sender;
use super::{NAME, NetError, offloads};
use crate::virtio::{Activation, ActiveQueue, Interrupt, Watcher, Worker, WorkerError};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

const RX: u32 = 0;
const TX: u32 = 1;
const TAP: u32 = 2;

pub(super) struct NetWorker {
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
    interrupt: Arc<dyn Interrupt>,
    tap: Arc<File>,
    features: u64,
}

impl NetWorker {
    pub(super) fn new(
        (rx, tx): (ActiveQueue, ActiveQueue),
        activation: &Activation,
        tap: Arc<File>,
        mtu: u16,
    ) -> Self {
        let (memory, features) = (&activation.memory, activation.features);
        Self {
            receiver: Receiver::new(rx, memory, tap.clone(), mtu, features),
            sender: Sender::new(tx, memory, tap.clone(), features),
            interrupt: activation.interrupt.clone(),
            tap,
            features,
        }
    }

    /// Receives what there is.
    pub(super) fn receive(&mut self) -> Result<(), NetError> {
        let wanted = self.receiver.serve()?;
        self.tell(wanted);
        Ok(())
    }

    /// Sends what there is, and receives at once: what this host answers by itself has come before the frame is sent, and
    /// takes neither a turn of the loop nor an interrupt of its own.
    pub(super) fn send(&mut self) -> Result<(), NetError> {
        let sent = self.sender.serve()?;
        let received = self.receiver.serve()?;
        self.tell(sent || received);
        Ok(())
    }

    fn tell(&self, wanted: bool) {
        if wanted {
            self.interrupt.signal_used();
        }
    }
}

impl Worker for NetWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        // By edges: frames wait while the driver has no buffers, and notifications need not be read to be over.
        let watched = [
            (self.receiver.queue.notify.as_raw_fd(), RX),
            (self.sender.queue.notify.as_raw_fd(), TX),
            (self.tap.as_raw_fd(), TAP),
        ];
        for (fd, token) in watched {
            watcher
                .add(&fd, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
                .map_err(|e| WorkerError::new(NAME, &e))?;
        }
        offloads::set(&self.tap, self.features);
        self.send().map_err(|e| WorkerError::new(NAME, &e))
    }

    fn handle(&mut self, token: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        let done = match token {
            RX | TAP => self.receive(),
            _ => self.send(),
        };
        done.map_err(|e| WorkerError::new(NAME, &e))
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        vec![Some(self.receiver.into_queue()), Some(self.sender.queue)]
    }
}
