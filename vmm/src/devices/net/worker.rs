//! The data path of virtio-net: the two queues and the tap between them.

use super::rx::Receiver;
use super::tx::Sender;
use super::{NAME, NetError, feature};
use crate::virtio::{Activation, ActiveQueue, Watcher, Worker, WorkerError};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

const RX: u32 = 0;
const TX: u32 = 1;
const TAP: u32 = 2;

/// The request that tells a tap which offloads the other side takes, `_IOW('T', 208, unsigned int)`.
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// Its bits.
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

pub(super) struct NetWorker {
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
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
        let (around, features) = ((&activation.memory, &activation.interrupt), activation.features);
        Self {
            receiver: Receiver::new(rx, around, tap.clone(), mtu, features),
            sender: Sender::new(tx, around, tap.clone(), features),
            tap,
            features,
        }
    }

    /// Has the tap cut and sum up frames that this driver doesn't take as they are.
    fn set_offloads(&self) {
        let offered = [
            (feature::GUEST_CSUM, TUN_F_CSUM),
            (feature::GUEST_TSO4, TUN_F_TSO4),
            (feature::GUEST_TSO6, TUN_F_TSO6),
        ];
        let taken = offered.iter().filter(|(bit, _)| self.features & bit != 0);
        let mut bits = taken.fold(0, |bits, (_, bit)| bits | bit);
        if bits & TUN_F_CSUM == 0 {
            // Segments are cut from what has no checksum yet.
            bits = 0;
        }
        // SAFETY: the request takes a number; the descriptor is owned by `self.tap`.
        // It can fail only where there is no tap, as in tests: then there is nothing to be offloaded.
        let _ = unsafe {
            libc::ioctl(
                self.tap.as_raw_fd(),
                libc::Ioctl::from(TUNSETOFFLOAD),
                libc::c_ulong::from(bits),
            )
        };
    }

    fn begin(&mut self) -> Result<(), NetError> {
        self.set_offloads();
        self.receiver.serve()?;
        self.sender.serve()
    }
}

impl Worker for NetWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        // The tap by edges: its frames wait while the driver has no buffers.
        let watched = [
            (self.receiver.queue.notify.as_raw_fd(), EventSet::IN, RX),
            (self.sender.queue.notify.as_raw_fd(), EventSet::IN, TX),
            (self.tap.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, TAP),
        ];
        for (fd, events, token) in watched {
            watcher.add(&fd, events, token).map_err(|e| WorkerError::new(NAME, &e))?;
        }
        self.begin().map_err(|e| WorkerError::new(NAME, &e))
    }

    fn handle(&mut self, token: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        let done = match token {
            RX | TAP => self.receiver.serve(),
            _ => self.sender.serve(),
        };
        done.map_err(|e| WorkerError::new(NAME, &e))
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        vec![Some(self.receiver.into_queue()), Some(self.sender.queue)]
    }
}
