//! The data path of virtio-vsock: the guest's queues on one side, the streams on the other.

use super::muxer::FIRST_TOKEN;
use super::packet::{HEADER, Header};
use super::rx::RxQueue;
use super::{Backend, NAME, Slot, VsockError};
use crate::virtio::Watcher;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{ActiveQueue, Interrupt, Worker, WorkerError};
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

const TX: u32 = 0;
const RX: u32 = 1;
const CONNECT: u32 = 2;
const AGAIN: u32 = 3;

/// Most packets of the guest taken in before other events are looked at.
const MAX_PACKETS: usize = 256;

pub(super) struct VsockWorker {
    rx: RxQueue,
    tx: ActiveQueue,
    /// Nothing is said there: a device's connections end with it.
    event: Option<ActiveQueue>,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    backend: Backend,
    /// Where the backend goes back to.
    slot: Slot,
}

impl VsockWorker {
    pub(super) fn new(
        queues: (ActiveQueue, ActiveQueue, Option<ActiveQueue>),
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
        backend: Backend,
        slot: Slot,
    ) -> Self {
        let (rx, tx, event) = queues;
        let rx = RxQueue::new(rx, memory.clone(), interrupt.clone());
        Self { rx, tx, event, memory, interrupt, backend, slot }
    }

    fn begin(&mut self, watcher: &mut Watcher<'_>) -> Result<(), VsockError> {
        let own = [
            (self.tx.notify.as_raw_fd(), TX),
            (self.rx.queue().notify.as_raw_fd(), RX),
            (self.backend.wake.as_raw_fd(), CONNECT),
            (self.backend.again.as_raw_fd(), AGAIN),
        ];
        for (fd, token) in own {
            watcher.add(&fd, EventSet::IN, token).map_err(VsockError::Watch)?;
        }
        self.backend.muxer.attach(watcher)?;
        self.take_connects(watcher);
        self.take_packets(watcher)
    }

    fn on_event(
        &mut self,
        token: u32,
        events: u32,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), VsockError> {
        match token {
            TX => self.take_packets(watcher)?,
            RX => self.rx.queue().drain_notification(),
            CONNECT => self.take_connects(watcher),
            AGAIN => {
                // Non-blocking; the only error is that it is clear already.
                let _ = self.backend.again.read();
                self.take_packets(watcher)?;
            }
            FIRST_TOKEN.. => {
                let events = EventSet::from_bits_truncate(events);
                self.backend.muxer.socket_ready(token, events, watcher);
            }
            _ => {}
        }
        Ok(())
    }

    /// What every event ends with: sends the guest what is due.
    fn finish(&mut self) -> Result<(), VsockError> {
        if self.backend.muxer.serve(&mut self.rx)? {
            self.go_on_later();
        }
        self.rx.interrupt()
    }

    fn go_on_later(&self) {
        // Fails only when the counter is full: then it is readable.
        let _ = self.backend.again.write(1);
    }

    fn take_connects(&mut self, watcher: &mut Watcher<'_>) {
        let _ = self.backend.wake.read();
        while let Ok((port, socket)) = self.backend.connects.try_recv() {
            self.backend.muxer.connect(port, socket, watcher);
        }
    }

    /// Takes in what the guest sent, a bounded number of packets.
    fn take_packets(&mut self, watcher: &mut Watcher<'_>) -> Result<(), VsockError> {
        self.tx.drain_notification();
        self.tx.disable_notification(&self.memory)?;
        for _ in 0..MAX_PACKETS {
            let Some(chain) = self.tx.pop(&self.memory)? else {
                if self.tx.enable_notification(&self.memory)? {
                    continue;
                }
                return self.interrupt_sender();
            };
            self.take_packet(&chain, watcher)?;
            self.tx.complete(&self.memory, chain.head(), 0)?;
        }
        self.go_on_later();
        self.interrupt_sender()
    }

    fn take_packet(&mut self, chain: &Chain, watcher: &mut Watcher<'_>) -> Result<(), VsockError> {
        let mut data = chain.reader(&self.memory);
        let mut header = [0; HEADER];
        data.read(&mut header)?;
        self.backend.muxer.receive(&Header::from_bytes(&header), data, watcher)
    }

    fn interrupt_sender(&mut self) -> Result<(), VsockError> {
        if self.tx.wants_interrupt(&self.memory)? {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

impl Worker for VsockWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        self.begin(watcher).and_then(|()| self.finish()).map_err(|e| WorkerError::new(NAME, &e))
    }

    fn handle(
        &mut self,
        token: u32,
        events: u32,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), WorkerError> {
        self.on_event(token, events, watcher)
            .and_then(|()| self.finish())
            .map_err(|e| WorkerError::new(NAME, &e))
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(self.backend);
        vec![Some(self.rx.into_queue()), Some(self.tx), self.event]
    }
}

impl From<ChainError> for VsockError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}
