//! virtio-rng: entropy of the host for the guest (virtio 1.3 §5.4).

use crate::virtio::Watcher;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, F_EVENT_IDX, Interrupt, VirtioDevice, Worker,
    WorkerError,
};
use std::io;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

const NAME: &str = "rng";
const DEVICE_ID: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [16];
/// Most bytes per request; the device may return fewer than asked for (§5.4.6.1).
const MAX_REQUEST: usize = 4096;

/// The front. It has neither features nor configuration.
#[derive(Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let requests = activation.take_queue(0)?;
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        Ok(Box::new(RngWorker { requests, memory, interrupt }))
    }
}

struct RngWorker {
    requests: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), RngError> {
        self.requests.drain_notification();
        loop {
            while let Some(chain) = self.requests.pop(&self.memory)? {
                let written = fill(&chain, &self.memory)?;
                self.requests.complete(&self.memory, chain.head(), written)?;
            }
            if !self.requests.enable_notification(&self.memory)? {
                break;
            }
        }
        if self.requests.wants_interrupt(&self.memory)? {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

/// Fills a chain with random bytes; returns how many.
fn fill(chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, RngError> {
    let mut bytes = [0u8; MAX_REQUEST];
    let wanted = chain.writable_len().min(MAX_REQUEST);
    // SAFETY: the buffer is valid for `wanted` bytes, which is at most its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), wanted, 0) };
    let got = usize::try_from(got).map_err(|_| RngError::Source(io::Error::last_os_error()))?;
    chain.writer(memory).write(&bytes[..got])?;
    Ok(got as u32)
}

#[derive(Debug, thiserror::Error)]
enum RngError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("getrandom")]
    Source(#[source] io::Error),
}

impl Worker for RngWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        watcher
            .add(&self.requests.notify, EventSet::IN, 0)
            .map_err(|e| WorkerError::new(NAME, &e))?;
        self.handle(0, 0, watcher)
    }

    fn handle(&mut self, _: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        self.serve().map_err(|e| WorkerError::new(NAME, &e))
    }

    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        vec![Some(self.requests)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{
        TestQueue, activation, hostile_chains, in_both_modes, memory, while_rewritten,
    };

    fn worker(memory: &GuestMemoryMmap, queue: &TestQueue) -> RngWorker {
        let requests = queue.active();
        let interrupt = activation(memory, &[], 0).1;
        RngWorker { requests, memory: memory.clone(), interrupt }
    }

    #[test]
    fn requests_are_filled_up_to_the_limit() {
        in_both_modes(|| {
            let memory = memory();
            let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
            let small = queue.send(&[], &[16, 48]);
            queue.send(&[], &[0x8000]);
            worker(&memory, &queue).serve().unwrap();
            assert_eq!(queue.used(), Some((0, 64)));
            assert_eq!(queue.used(), Some((2, MAX_REQUEST as u32)));
            assert_ne!(queue.read(small[1], 48), [0; 48]);
        });
    }

    #[test]
    fn a_request_without_room_gets_nothing() {
        in_both_modes(|| {
            let memory = memory();
            let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
            queue.send(&[b"what"], &[]);
            worker(&memory, &queue).serve().unwrap();
            assert_eq!(queue.used(), Some((0, 0)));
        });
    }

    #[test]
    fn a_hostile_chain_ends_the_worker() {
        in_both_modes(|| {
            hostile_chains(16, |name, memory, queue| {
                assert!(worker(memory, &queue).serve().is_err(), "{name}");
            });
        });
    }

    #[test]
    fn a_chain_changed_while_it_is_served_is_survived() {
        in_both_modes(|| {
            let memory = memory();
            while_rewritten(&memory, 0x10_0000, || {
                for _ in 0..500 {
                    let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
                    queue.offer(0);
                    // Served or refused, as it happens to be when it is read.
                    let _ = worker(&memory, &queue).serve();
                }
            });
        });
    }
}
