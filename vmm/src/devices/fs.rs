//! virtio-fs: the front of a shared directory that another process serves (virtio 1.3 §5.11).
//!
//! The server is told, by vhost-user, where guest memory and the rings are, and from then on the
//! guest's notifications (ioeventfd) and the server's interrupts (irqfd) pass this process by. What
//! is left to the worker is the handshake, which waits for the server and so runs on an I/O thread of
//! its own, and to notice when the server dies.

use crate::virtio::Watcher;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt,
    VirtioDevice, Worker, WorkerError,
};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

const NAME: &str = "fs";
const DEVICE_ID: u32 = 26;
/// High-priority queue and one request queue (§5.11.2). The latter bounds the pages of a request:
/// 512 is beyond what FUSE uses (256).
const QUEUE_SIZES: [u16; 2] = [128, 512];
const REQUEST_QUEUES: u32 = 1;
/// Bytes of the tag (§5.11.4).
const TAG_LEN: usize = 36;

/// The server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum FsError {
    #[error("ask the file server to {what}")]
    Server {
        what: &'static str,
        #[source]
        source: vhost::Error,
    },
    #[error("the file server lacks features that the guest was offered")]
    Features,
    #[error("a ring is not in guest memory")]
    Ring(#[source] GuestMemoryError),
    #[error("share a descriptor")]
    Descriptor(#[source] io::Error),
}

fn server(what: &'static str) -> impl FnOnce(vhost::Error) -> FsError {
    move |source| FsError::Server { what, source }
}

/// The connection to the server, and what it was told.
struct Backend {
    server: Frontend,
    /// Features were negotiated, once for the life of the connection.
    greeted: bool,
    /// The driver reset the device: the server has to forget what it did for it.
    forget: bool,
}

/// Where the backend is while no worker has it.
type Slot = Arc<Mutex<Option<Backend>>>;

/// The front.
pub struct SharedDir {
    tag: String,
    slot: Slot,
}

impl SharedDir {
    /// A directory named `tag` in the guest, served at the other end of a connected stream socket.
    /// Says nothing to the server yet. `None` when the tag is empty or longer than 36 bytes.
    pub fn new(tag: &str, socket: OwnedFd) -> Option<Self> {
        if tag.is_empty() || tag.len() > TAG_LEN {
            return None;
        }
        let server = Frontend::from_stream(UnixStream::from(socket), QUEUE_SIZES.len() as u64);
        let backend = Backend { server, greeted: false, forget: false };
        Some(Self { tag: tag.to_owned(), slot: Arc::new(Mutex::new(Some(backend))) })
    }

    /// `struct virtio_fs_config` (§5.11.4).
    fn config(&self) -> [u8; TAG_LEN + 4] {
        let mut config = [0; TAG_LEN + 4];
        config[..self.tag.len()].copy_from_slice(self.tag.as_bytes());
        config[TAG_LEN..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        config
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Backend>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for SharedDir {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Constant, so that the guest can start before the server answers.
    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        for (index, queue) in activation.queues.iter().enumerate() {
            queue.as_ref().ok_or(ActivateError::MissingQueue(index))?;
        }
        let gone = || ActivateError::Backend("the worker did not come back".into());
        let backend = self.slot().take().ok_or_else(gone)?;
        Ok(Box::new(FsWorker {
            queues: activation.queues.into_iter().flatten().collect(),
            memory: activation.memory,
            interrupt: activation.interrupt,
            features: activation.features,
            backend,
            slot: self.slot.clone(),
            started: false,
        }))
    }

    fn reset(&mut self) {
        if let Some(backend) = self.slot().as_mut() {
            backend.forget = backend.greeted;
        }
    }
}

struct FsWorker {
    queues: Vec<ActiveQueue>,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    features: u64,
    backend: Backend,
    slot: Slot,
    /// The server has the rings.
    started: bool,
}

impl FsWorker {
    /// Tells the server everything it needs; waits for its answers.
    fn handshake(&mut self) -> Result<(), FsError> {
        self.greet()?;
        let server_end = &mut self.backend.server;
        if std::mem::take(&mut self.backend.forget) {
            server_end.reset_device().map_err(server("reset the device"))?;
        }
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        server_end.set_features(self.features | protocol).map_err(server("set features"))?;
        let regions: Result<Vec<_>, _> =
            self.memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        let regions = regions.map_err(server("map guest memory"))?;
        server_end.set_mem_table(&regions).map_err(server("map guest memory"))?;
        self.started = true;
        for index in 0..self.queues.len() {
            self.hand_over(index)?;
        }
        Ok(())
    }

    fn greet(&mut self) -> Result<(), FsError> {
        if self.backend.greeted {
            return Ok(());
        }
        let server_end = &mut self.backend.server;
        server_end.set_owner().map_err(server("accept an owner"))?;
        let offered = server_end.get_features().map_err(server("tell its features"))?;
        let needed = F_VERSION_1
            | F_EVENT_IDX
            | F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let protocol = server_end.get_protocol_features().map_err(server("tell its features"))?;
        // With an answer to each message, an error is one of the message that caused it.
        let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::RESET_DEVICE;
        if offered & needed != needed || !protocol.contains(wanted) {
            return Err(FsError::Features);
        }
        server_end.set_protocol_features(wanted).map_err(server("set features"))?;
        server_end.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        self.backend.greeted = true;
        Ok(())
    }

    /// Gives the server one ring, with the descriptors by which it and the guest notify each other.
    fn hand_over(&mut self, index: usize) -> Result<(), FsError> {
        let active = &self.queues[index];
        let queue = &active.queue;
        let address = |guest: u64| {
            let host = self.memory.get_host_address(GuestAddress(guest));
            host.map(|pointer| pointer as u64).map_err(FsError::Ring)
        };
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: address(queue.desc_table())?,
            used_ring_addr: address(queue.used_ring())?,
            avail_ring_addr: address(queue.avail_ring())?,
            log_addr: None,
        };
        let call = self.interrupt.share_used().map_err(FsError::Descriptor)?;
        let to = &mut self.backend.server;
        to.set_vring_num(index, queue.size()).map_err(server("set a ring's size"))?;
        to.set_vring_addr(index, &config).map_err(server("set a ring's address"))?;
        to.set_vring_base(index, queue.next_avail()).map_err(server("set a ring's base"))?;
        to.set_vring_call(index, &call).map_err(server("take an interrupt"))?;
        to.set_vring_kick(index, &active.notify).map_err(server("take a notification"))?;
        to.set_vring_enable(index, true).map_err(server("enable a ring"))?;
        // Requests may have come before the server could see them.
        active.notify_again();
        Ok(())
    }

    /// Takes the rings back: afterwards the server touches them no more.
    fn take_back(&mut self) -> Result<(), FsError> {
        for (index, active) in self.queues.iter_mut().enumerate() {
            let base = self.backend.server.get_vring_base(index).map_err(server("stop a ring"))?;
            active.go_on_at(&self.memory, base as u16);
        }
        Ok(())
    }
}

impl Worker for FsWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        watcher
            .add(&self.backend.server, EventSet::READ_HANG_UP, 0)
            .map_err(|e| WorkerError::new(NAME, &e))?;
        self.handshake().map_err(|e| WorkerError::new(NAME, &e))
    }

    fn handle(&mut self, _: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        // The only event asked for.
        Err(WorkerError { device: NAME, reason: "the file server is gone".to_owned() })
    }

    fn quiesce(&mut self) {
        if std::mem::take(&mut self.started) {
            // An error means that the server is gone, and with it all use of the rings; the next
            // activation fails then, by the same error.
            let _ = self.take_back();
        }
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(self.backend);
        self.queues.into_iter().map(Some).collect()
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
