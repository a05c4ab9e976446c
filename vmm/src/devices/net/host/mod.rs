//! An interface whose queues the host's kernel serves (vhost-net): no frame and no notification passes this process.
//!
//! The kernel is told where guest memory and the rings are; from then on the guest's notifications (ioeventfd) wake its
//! thread, which moves frames between rings and tap and raises the interrupt (irqfd). What is left to the worker is to
//! hand the rings over and to take them back; where the kernel does not take them, the interface is served by this process.

mod kernel;
#[cfg(test)]
mod tests;

use super::worker::NetWorker;
use super::{NAME, offloads};
use crate::causes::chain;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Watcher,
    Worker, WorkerError,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) use kernel::requests;

/// What the kernel has to be able to do for the features that guests are offered. The rest of them is the tap's.
const KERNELS: u64 = super::feature::MRG_RXBUF | F_EVENT_IDX | F_INDIRECT_DESC | F_VERSION_1;

/// The kernel did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum VhostError {
    #[error("vhost-net: {what}")]
    Call {
        what: &'static str,
        #[source]
        source: vhost::Error,
    },
    #[error("vhost-net lacks features that the guest was offered")]
    Features,
    #[error("vhost-net: the guest has broken a ring")]
    Broken,
}

fn call(what: &'static str) -> impl FnOnce(vhost::Error) -> VhostError {
    move |source| VhostError::Call { what, source }
}

/// A ring as it is handed over; addresses are the guest's.
struct Ring<'a> {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    /// The guest's notifications.
    kick: &'a EventFd,
    /// The interrupt.
    call: &'a EventFd,
    /// Told when the ring can't be understood.
    broken: &'a EventFd,
}

/// What serves rings: the host's kernel, but in tests.
trait Host: Send + Sync {
    /// Serves this process, and its memory, from now on.
    fn own(&self) -> vhost::Result<()>;
    /// What it can do.
    fn features(&self) -> vhost::Result<u64>;
    /// With these features, and in this memory.
    fn set_up(&self, features: u64, memory: &GuestMemoryMmap) -> vhost::Result<()>;
    /// Takes ring `index`, and serves it only when it is connected.
    fn give(&self, index: usize, ring: &Ring<'_>, memory: &GuestMemoryMmap) -> vhost::Result<()>;
    /// Serves ring `index` for a tap, or no longer: it is not touched any more then.
    fn connect(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> vhost::Result<()>;
    /// Gives a ring back that is not connected: which of its available entries comes next.
    fn take_back(&self, index: usize) -> vhost::Result<u16>;
}

/// The kernel's half of an interface, for as long as that is there.
#[derive(Clone)]
pub(super) struct Backend {
    host: Arc<dyn Host>,
    broken: Arc<EventFd>,
}

impl Backend {
    /// By an open `/dev/vhost-net`, which nobody has used before.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub(super) fn new(vhost: File) -> io::Result<Self> {
        Self::served_by(Arc::new(kernel::Kernel(vhost)))
    }

    fn served_by(host: Arc<dyn Host>) -> io::Result<Self> {
        Ok(Self { host, broken: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// The worker of an interface whose driver is up.
    pub(super) fn worker(
        &self,
        mut activation: Activation,
        tap: &Arc<File>,
        mtu: u16,
    ) -> Result<HostWorker, ActivateError> {
        let call = activation.interrupt.share_used();
        let call = call.map_err(|e| ActivateError::Backend(e.into()))?;
        let queues = vec![activation.take_queue(0)?, activation.take_queue(1)?];
        let (tap, backend) = (tap.clone(), self.clone());
        Ok(HostWorker { queues, activation, call, tap, mtu, backend, served: 0, ours: None })
    }
}

pub(super) struct HostWorker {
    /// None once this process serves them.
    queues: Vec<ActiveQueue>,
    activation: Activation,
    call: EventFd,
    tap: Arc<File>,
    mtu: u16,
    backend: Backend,
    /// How many rings the kernel serves, the first ones.
    served: usize,
    /// Serves them where the kernel does not.
    ours: Option<NetWorker>,
}

impl HostWorker {
    fn hand_over(&mut self) -> Result<(), VhostError> {
        let Backend { host, broken } = &self.backend;
        let Activation { features, memory, .. } = &self.activation;
        match host.own() {
            // It was told so when the driver came up first.
            Err(vhost::Error::IoctlError(e)) if e.raw_os_error() == Some(libc::EBUSY) => {}
            owned => owned.map_err(call("serve this process"))?,
        }
        if host.features().map_err(call("tell its features"))? & KERNELS != KERNELS {
            return Err(VhostError::Features);
        }
        offloads::set(&self.tap, *features);
        host.set_up(features & KERNELS, memory).map_err(call("take guest memory"))?;
        for (index, active) in self.queues.iter().enumerate() {
            let queue = &active.queue;
            let ring = Ring {
                size: queue.size(),
                descriptors: queue.desc_table(),
                available: queue.avail_ring(),
                used: queue.used_ring(),
                next_available: queue.next_avail(),
                kick: &active.notify,
                call: &self.call,
                broken,
            };
            host.give(index, &ring, memory).map_err(call("take a ring"))?;
            host.connect(index, Some(self.tap.as_fd())).map_err(call("take a tap"))?;
            self.served = index + 1;
            // Frames may have come before the kernel could see them.
            active.notify_again();
        }
        Ok(())
    }

    /// Takes back what the kernel serves: each ring, whatever it says of another.
    ///
    /// # Errors
    /// It may go on with one, or where it has got to is not known.
    fn take_back(&mut self) -> Result<(), VhostError> {
        let host = &self.backend.host;
        let rings = 0..std::mem::take(&mut self.served);
        let mut outcome = Ok(());
        for index in rings.clone() {
            outcome = outcome.and(host.connect(index, None).map_err(call("let go of a tap")));
        }
        for (index, active) in rings.zip(&mut self.queues) {
            match host.take_back(index) {
                Ok(next) => active.go_on_at(&self.activation.memory, next),
                Err(error) => outcome = outcome.and(Err(call("give a ring back")(error))),
            }
        }
        outcome
    }

    /// The worker that serves the same queues and tap without the kernel.
    fn without_kernel(&mut self) -> Option<NetWorker> {
        let [rx, tx] = std::mem::take(&mut self.queues).try_into().ok()?;
        Some(NetWorker::new((rx, tx), &self.activation, self.tap.clone(), self.mtu))
    }
}

impl Worker for HostWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        if let Some(ours) = &mut self.ours {
            return ours.start(watcher);
        }
        let broken = &*self.backend.broken;
        // What a driver before this one has broken is over.
        let _ = broken.read();
        let Err(error) = self.hand_over() else {
            let watched = watcher.add(&*self.backend.broken, EventSet::IN, 0);
            return watched.map_err(|e| WorkerError::new(NAME, &e));
        };
        self.take_back().map_err(|e| WorkerError::new(NAME, &e))?;
        eprintln!(
            "kata-like-vmm: an interface is not served by the host's kernel: {}",
            chain(&error)
        );
        self.ours = self.without_kernel();
        self.ours.as_mut().map_or(Ok(()), |ours| ours.start(watcher))
    }

    fn handle(
        &mut self,
        token: u32,
        events: u32,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), WorkerError> {
        if let Some(ours) = &mut self.ours {
            return ours.handle(token, events, watcher);
        }
        self.quiesce();
        Err(WorkerError::new(NAME, &VhostError::Broken))
    }

    fn quiesce(&mut self) {
        if let Err(error) = self.take_back() {
            eprintln!(
                "kata-like-vmm: an interface that the host's kernel serves: {}",
                chain(&error)
            );
        }
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        match self.ours {
            Some(ours) => Box::new(ours).stop(),
            None => self.queues.into_iter().map(Some).collect(),
        }
    }
}
