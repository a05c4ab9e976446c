//! virtio-vsock as a multiplexer in user space (virtio 1.3 §5.10): streams between ports of the
//! guest and sockets of the host, without a kernel module.
//!
//! - Host to guest: [`Connector::connect`] hands over a connected stream socket.
//! - Guest to host: to listed ports only; the host's end comes as [`DeviceEvent::Accepted`].
//!
//! [`packet`] is the wire format, [`connection`] the protocol as pure state, `stream` a connection
//! with its socket, `rx` the guest's receive buffers, [`muxer`] all streams, `worker` the data path.
//!
//! [`DeviceEvent::Accepted`]: super::events::DeviceEvent::Accepted

pub mod connection;
pub mod muxer;
pub mod packet;
mod rx;
mod stream;
mod worker;

use crate::events::EventSender;
use crate::virtio::chain::ChainError;
use crate::virtio::{
    ActivateError, Activation, F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice, Worker,
};
use muxer::Muxer;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use worker::VsockWorker;

const NAME: &str = "vsock";
const DEVICE_ID: u32 = 19;
/// Receive, transmit, event (§5.10.2).
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const EVENT_QUEUE: usize = 2;
/// Most connect requests that wait for the worker.
const MAX_CONNECTS: usize = 256;

/// The device can't go on until its driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A queue or chain breaks the rules.
    #[error(transparent)]
    Chain(ChainError),
    /// A receive buffer that could never take data.
    #[error("a receive buffer of {0} bytes has no room for data")]
    SmallBuffer(usize),
    /// A host's socket failed.
    #[error("host socket")]
    Socket(#[source] io::Error),
    /// epoll took no more descriptors.
    #[error("watch a descriptor")]
    Watch(#[source] io::Error),
}

/// Host-initiated streams: asks the worker to connect. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    connects: SyncSender<(u32, OwnedFd)>,
    wake: Arc<EventFd>,
}

impl Connector {
    /// Joins a connected stream socket to a port of the guest. A refused stream, or one to a guest
    /// that can't take it, is closed; there is no other answer. Never blocks. Before the guest's
    /// driver is there, requests wait.
    ///
    /// # Errors
    /// Gives the socket back when too many requests wait.
    pub fn connect(&self, port: u32, socket: OwnedFd) -> Result<(), OwnedFd> {
        self.connects.try_send((port, socket)).map_err(|e| match e {
            TrySendError::Full((_, socket)) | TrySendError::Disconnected((_, socket)) => socket,
        })?;
        // Fails only when the counter is full: then the worker is woken already.
        let _ = self.wake.write(1);
        Ok(())
    }
}

/// What the worker takes along and brings back.
struct Backend {
    muxer: Muxer,
    connects: Receiver<(u32, OwnedFd)>,
    wake: Arc<EventFd>,
    /// Wakes the worker to go on after other workers had their turn.
    again: EventFd,
}

/// Where the backend is while no worker has it.
type Slot = Arc<Mutex<Option<Backend>>>;

/// The front.
pub struct Vsock {
    guest_cid: u64,
    slot: Slot,
}

impl Vsock {
    /// A device for the guest `guest_cid`, whose connections to `host_ports` go to `events`.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn new(
        guest_cid: u32,
        host_ports: Vec<u32>,
        events: EventSender,
    ) -> io::Result<(Self, Connector)> {
        let guest_cid = u64::from(guest_cid);
        let (sender, connects) = sync_channel(MAX_CONNECTS);
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let muxer = Muxer::new(guest_cid, host_ports, events);
        let again = EventFd::new(EFD_NONBLOCK)?;
        let backend = Backend { muxer, connects, wake: wake.clone(), again };
        let slot = Arc::new(Mutex::new(Some(backend)));
        Ok((Self { guest_cid, slot }, Connector { connects: sender, wake }))
    }

    fn with_backend<T>(&self, act: impl FnOnce(&mut Option<Backend>) -> T) -> T {
        act(&mut self.slot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn is_quiet(&self, queue: usize) -> bool {
        queue == EVENT_QUEUE
    }

    /// No feature of vsock's own: stream sockets only (§5.10.3).
    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// The guest's context id (§5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queues = (
            activation.take_queue(RX_QUEUE)?,
            activation.take_queue(TX_QUEUE)?,
            activation.take_queue(EVENT_QUEUE).ok(),
        );
        let gone = || ActivateError::Backend("the worker did not come back".into());
        let backend = self.with_backend(Option::take).ok_or_else(gone)?;
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        let slot = self.slot.clone();
        Ok(Box::new(VsockWorker::new(queues, memory, interrupt, backend, slot)))
    }

    fn reset(&mut self) {
        self.with_backend(|backend| {
            if let Some(backend) = backend {
                backend.muxer.clear();
            }
        });
    }
}

#[cfg(test)]
mod tests;
