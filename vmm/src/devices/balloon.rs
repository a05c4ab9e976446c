//! virtio-balloon, for free page reporting alone: what the guest frees goes back to the host by itself
//! (virtio 1.3 §5.5.6.7). The balloon is never asked to grow.

use crate::virtio::Watcher;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::iovec::IoVecs;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, F_EVENT_IDX, Interrupt, VirtioDevice, Worker,
    WorkerError,
};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

const NAME: &str = "balloon";
const DEVICE_ID: u32 = 5;
/// The driver reports free pages (§5.5.3).
const F_PAGE_REPORTING: u64 = 1 << 5;
/// Inflate, deflate and reporting queue. §5.5.2 numbers the last one 4; all drivers and devices count
/// the queues that there are. Linux wants room for 32 ranges in it.
const QUEUE_SIZES: [u16; 3] = [32; 3];
const REPORTING: usize = 2;
/// Bytes given back before the other devices of the loop have their turn: about a millisecond.
const TURN: usize = 8 << 20;

/// The front. Its configuration reads as zero: a balloon of no pages (§5.5.4).
#[derive(Default)]
pub struct Balloon;

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn is_quiet(&self, queue: usize) -> bool {
        queue != REPORTING
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_PAGE_REPORTING
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let Activation { memory, mut queues, interrupt, .. } = activation;
        let reports = queues.get_mut(REPORTING).and_then(Option::take);
        let reports = reports.ok_or(ActivateError::MissingQueue(REPORTING))?;
        Ok(Box::new(BalloonWorker { unused: queues, reports, begun: None, memory, interrupt }))
    }
}

struct BalloonWorker {
    /// All queues but the reporting queue, which no driver has a reason to use.
    unused: Vec<Option<ActiveQueue>>,
    reports: ActiveQueue,
    /// A report, and how many of its bytes are given back.
    begun: Option<(Chain, usize)>,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
}

impl BalloonWorker {
    /// Serves one turn; whether there is more to do.
    fn serve(&mut self) -> Result<bool, ChainError> {
        let (chain, done) = match self.begun.take() {
            Some(begun) => begun,
            None => match self.reports.pop(&self.memory)? {
                Some(chain) => (chain, 0),
                None => return self.reports.enable_notification(&self.memory),
            },
        };
        let mut rest = chain.writer(&self.memory);
        rest.skip(done)?;
        let (left, mut pieces) = (rest.remaining(), IoVecs::default());
        rest.gather(left.min(TURN), &mut pieces)?;
        pieces.discard();
        if left > TURN {
            self.begun = Some((chain, done + TURN));
            return Ok(true);
        }
        // Only now may the driver use the pages again.
        self.reports.complete(&self.memory, chain.head(), 0)?;
        if self.reports.wants_interrupt(&self.memory)? {
            self.interrupt.signal_used();
        }
        Ok(true)
    }
}

impl Worker for BalloonWorker {
    fn start(&mut self, watcher: &mut Watcher<'_>) -> Result<(), WorkerError> {
        watcher
            .add(&self.reports.notify, EventSet::IN, 0)
            .map_err(|e| WorkerError::new(NAME, &e))?;
        self.handle(0, 0, watcher)
    }

    fn handle(&mut self, _: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        self.reports.drain_notification();
        if self.serve().map_err(|e| WorkerError::new(NAME, &e))? {
            self.reports.notify_again();
        }
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        if self.begun.is_some() {
            // To give pages back twice does no harm: the driver still waits for the first time.
            self.reports.undo_pop();
        }
        self.unused.truncate(REPORTING);
        self.unused.push(Some(self.reports));
        self.unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use crate::virtio::testing::{
        NEXT, TestInterrupt, TestQueue, WRITE, activation, hostile_chains, in_both_modes,
        while_rewritten,
    };
    use std::os::linux::fs::MetadataExt;
    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

    const MIB: u64 = 1 << 20;

    struct Fixture {
        ram: GuestRam,
        queue: TestQueue,
        worker: BalloonWorker,
        interrupt: Arc<TestInterrupt>,
    }

    fn worker(memory: &GuestMemoryMmap, queue: &TestQueue) -> (BalloonWorker, Arc<TestInterrupt>) {
        let (activation, interrupt) = activation(memory, &[], 0);
        let (reports, unused) = (queue.active(), vec![None, None, None]);
        let Activation { memory, interrupt: dynamic, .. } = activation;
        (BalloonWorker { unused, reports, begun: None, memory, interrupt: dynamic }, interrupt)
    }

    impl Fixture {
        /// Memory of 64 MiB with its rings at 32 MiB, every page of it touched.
        fn new() -> Self {
            let ram = GuestRam::new(64 * MIB).unwrap();
            for page in (0..64 * MIB).step_by(4096) {
                ram.memory().write_obj(7u8, GuestAddress(page)).unwrap();
            }
            let queue = TestQueue::new(ram.memory(), 32 * MIB, 32);
            let (worker, interrupt) = worker(ram.memory(), &queue);
            Self { ram, queue, worker, interrupt }
        }

        /// MiB that the host holds for the guest.
        fn held(&self) -> u64 {
            let region = self.ram.memory().iter().next().unwrap();
            let file = region.file_offset().unwrap().file();
            file.metadata().unwrap().st_blocks() * 512 / MIB
        }

        /// Serves until there is nothing more to do; how many turns that took.
        fn serve(&mut self) -> usize {
            (1..=1000).find(|_| !self.worker.serve().unwrap()).unwrap()
        }
    }

    #[test]
    fn reported_pages_go_back_to_the_host_and_read_as_zeroes() {
        in_both_modes(|| {
            let mut f = Fixture::new();
            assert_eq!(f.held(), 64);
            f.queue.descriptor(0, 2 * MIB, 4 << 20, NEXT | WRITE, 1);
            f.queue.descriptor(1, 8 * MIB, 2 << 20, WRITE, 0);
            f.queue.offer(0);
            f.serve();
            assert_eq!(f.held(), 58);
            assert_eq!(f.queue.used(), Some((0, 0)));
            assert_eq!(f.interrupt.used(), 1);
            let read = |at| f.ram.memory().read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!([2 * MIB - 4096, 2 * MIB, 6 * MIB - 4096, 6 * MIB].map(read), [7, 0, 0, 7]);
        });
    }

    #[test]
    fn a_long_report_is_served_in_turns_and_completed_at_its_end() {
        in_both_modes(|| {
            let mut f = Fixture::new();
            f.queue.descriptor(0, 0, 20 << 20, WRITE, 0);
            f.queue.offer(0);
            assert!(f.worker.serve().unwrap());
            assert_eq!((f.held(), f.queue.used()), (56, None));
            assert_eq!(f.serve(), 3);
            assert_eq!((f.held(), f.queue.used()), (44, Some((0, 0))));
        });
    }

    #[test]
    fn a_report_that_a_pause_interrupts_is_served_again_afterwards() {
        in_both_modes(|| {
            let mut f = Fixture::new();
            f.queue.descriptor(0, 0, 20 << 20, WRITE, 0);
            f.queue.offer(0);
            assert!(f.worker.serve().unwrap());
            let (again, _) = worker(f.ram.memory(), &f.queue);
            let stopped = Box::new(std::mem::replace(&mut f.worker, again)).stop();
            f.worker.reports = stopped.into_iter().nth(REPORTING).flatten().unwrap();
            f.serve();
            assert_eq!((f.held(), f.queue.used()), (44, Some((0, 0))));
        });
    }

    #[test]
    fn parts_of_pages_stay_and_overlaps_do_no_harm() {
        in_both_modes(|| {
            let mut f = Fixture::new();
            f.queue.descriptor(0, 2 * MIB + 1, 8190, NEXT | WRITE, 1);
            f.queue.descriptor(1, 4 * MIB, 2 << 20, NEXT | WRITE, 2);
            f.queue.descriptor(2, 5 * MIB, 2 << 20, NEXT | WRITE, 3);
            f.queue.descriptor(3, 5 * MIB, 2 << 20, WRITE, 0);
            f.queue.offer(0);
            f.serve();
            assert_eq!(f.held(), 61);
            assert_eq!(f.ram.memory().read_obj::<u8>(GuestAddress(2 * MIB)).unwrap(), 7);
            // Readable buffers hold something, and are left alone.
            f.queue.send(&[&[1; 8192]], &[]);
            f.serve();
            assert_eq!((f.held(), f.queue.used()), (61, Some((0, 0))));
        });
    }

    #[test]
    fn more_than_linux_reports_at_once_is_refused() {
        in_both_modes(|| {
            let ram = GuestRam::new(256 * MIB).unwrap();
            let mut queue = TestQueue::new(ram.memory(), 0, 32);
            queue.descriptor(0, 64 * MIB, 128 << 20, WRITE, 0);
            queue.offer(0);
            let (mut within, _) = worker(ram.memory(), &queue);
            while within.serve().unwrap() {}
            queue.descriptor(0, 64 * MIB, (128 << 20) + 1, WRITE, 0);
            queue.offer(0);
            assert!(matches!(within.serve(), Err(ChainError::TooManyBytes)));
        });
    }

    #[test]
    fn a_hostile_chain_ends_the_worker() {
        in_both_modes(|| {
            hostile_chains(32, |name, memory, queue| {
                assert!(worker(memory, &queue).0.serve().is_err(), "{name}");
            });
        });
    }

    #[test]
    fn a_chain_changed_while_it_is_served_is_survived() {
        in_both_modes(|| {
            let memory = crate::virtio::testing::memory();
            while_rewritten(&memory, 0x10_0000, || {
                for _ in 0..500 {
                    let mut queue = TestQueue::new(&memory, 0x10_0000, 32);
                    queue.offer(0);
                    // Served or refused, as it happens to be when it is read.
                    while let Ok(true) = worker(&memory, &queue).0.serve() {}
                }
            });
        });
    }

    #[test]
    fn only_reports_are_waited_for() {
        let (sender, _events) = crate::events::channel().unwrap();
        let io = crate::virtio::io_loop::IoLoop::new("test", sender).unwrap();
        let memory = crate::virtio::testing::memory();
        let page = crate::virtio::testing::registers();
        let transport =
            crate::virtio::mmio::MmioTransport::new(page, Box::new(Balloon), memory, io.handle());
        let transport = transport.unwrap();
        let awaited: Vec<_> = transport.notifications().map(|(queue, _)| queue).collect();
        assert_eq!(awaited, [REPORTING as u32]);
    }

    #[test]
    fn a_driver_that_does_not_report_gets_no_device() {
        in_both_modes(|| {
            let memory = crate::virtio::testing::memory();
            let queues = [0x10_0000, 0x20_0000].map(|at| TestQueue::new(&memory, at, 32));
            let (activation, _) = activation(&memory, &[&queues[0], &queues[1]], 0);
            let refused = Balloon.activate(activation).map(drop);
            assert!(matches!(refused, Err(ActivateError::MissingQueue(REPORTING))));
        });
    }
}
