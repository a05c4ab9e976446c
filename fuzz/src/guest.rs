//! A guest whose driver does anything: builds chains, good and bad, while the device works on them.

use crate::choices::Choices;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::events::EventReceiver;
use vmm::virtio::io_loop::{IoLoop, WorkerId};
use vmm::virtio::testing::{self, MEMORY, NEXT, TestInterrupt, TestQueue, WRITE};
use vmm::virtio::{Activation, ActiveQueue, F_EVENT_IDX, VirtioDevice};

/// Where a queue's own megabyte has its buffers, and a table for indirect descriptors.
const BUFFERS: u64 = 0x1_0000;
const BUFFERS_LEN: u64 = 0xc_0000;
const TABLE: u64 = 0xf_0000;
const MEGABYTE: u64 = 0x10_0000;
/// Rounds of the loop in which a device has to come to rest.
const ROUNDS: usize = 64;

/// A running device, served by the calling thread, and its driver.
pub struct Guest {
    /// What its rings and buffers are in.
    pub memory: GuestMemoryMmap,
    /// Told of used buffers.
    pub interrupt: Arc<TestInterrupt>,
    io: IoLoop,
    _worker: WorkerId,
    queues: Vec<Queue>,
}

struct Queue {
    ring: TestQueue,
    base: u64,
    size: u16,
    descriptor: u16,
    buffer: u64,
}

impl Guest {
    /// Brings a device up, with all its queues, as a good driver would.
    pub fn new(device: &mut dyn VirtioDevice, io: IoLoop, event_idx: bool) -> Self {
        Self::with_features(device, io, event_idx, 0)
    }

    /// The same, with features of the device's own.
    pub fn with_features(
        device: &mut dyn VirtioDevice,
        io: IoLoop,
        event_idx: bool,
        features: u64,
    ) -> Self {
        let memory = testing::memory();
        let sizes = device.queue_max_sizes().to_vec();
        let queues: Vec<Queue> = (1..).zip(sizes).map(|(n, s)| Queue::new(&memory, n, s)).collect();
        let interrupt = Arc::new(TestInterrupt::default());
        let activation = Activation {
            memory: memory.clone(),
            queues: queues.iter().map(|q| Some(q.active(event_idx))).collect(),
            interrupt: interrupt.clone(),
            features: features | if event_idx { F_EVENT_IDX } else { 0 },
        };
        let worker = device.activate(activation).expect("all queues are there");
        let worker = io.handle().add(worker, interrupt.clone());
        Self { memory, interrupt, io, _worker: worker, queues }
    }

    /// Lets the device work until it has nothing to do.
    pub fn run_device(&mut self) {
        for _ in 0..ROUNDS {
            if self.io.turn(0).expect("epoll") == Some(0) {
                return;
            }
        }
    }

    /// Does one thing that a driver can do with queue `index`.
    pub fn act(&mut self, index: usize, input: &mut Choices<'_>) {
        let queue = &mut self.queues[index];
        match input.below(6) {
            0 => queue.send(&self.memory, input),
            1 => queue.write_descriptor(input),
            2 => queue.ring.offer(input.u16()),
            3 => queue.ring.set_available_index(input.u16()),
            4 => {
                let at = u64::from(input.u32()) % MEMORY;
                let len = input.below(64).min((MEMORY - at) as usize);
                let bytes = input.bytes(len);
                self.memory.write_slice(bytes, GuestAddress(at)).expect("it is in memory");
            }
            _ => self.run_device(),
        }
        while queue_used(&mut self.queues[index]) {}
    }

    /// Offers a good chain with one readable piece, or a writable one where there are no bytes.
    pub fn send(&mut self, index: usize, readable: &[u8], writable: usize) {
        self.queues[index].offer_chain(&self.memory, &[readable], &[writable]);
    }
}

fn queue_used(queue: &mut Queue) -> bool {
    queue.ring.used().is_some()
}

impl Queue {
    fn new(memory: &GuestMemoryMmap, number: u64, size: u16) -> Self {
        let base = number * MEGABYTE;
        Self { ring: TestQueue::new(memory, base, size), base, size, descriptor: 0, buffer: 0 }
    }

    fn active(&self, event_idx: bool) -> ActiveQueue {
        let queue = self.ring.setup().to_queue(self.size, event_idx).expect("a good queue");
        ActiveQueue::new(queue, self.ring.active().notify)
    }

    /// A good chain of up to three readable and three writable pieces.
    fn send(&mut self, memory: &GuestMemoryMmap, input: &mut Choices<'_>) {
        let (readable, writable) = (input.below(4), input.below(4));
        let readable: Vec<_> = (0..readable)
            .map(|_| {
                let len = input.byte().into();
                input.bytes(len)
            })
            .collect();
        let writable: Vec<_> = (0..writable).map(|_| usize::from(input.u16())).collect();
        self.offer_chain(memory, &readable, &writable);
    }

    fn offer_chain(&mut self, memory: &GuestMemoryMmap, readable: &[&[u8]], writable: &[usize]) {
        let pieces = readable.iter().map(|data| (data.len(), Some(*data)));
        let pieces = pieces.chain(writable.iter().map(|len| (*len, None)));
        let pieces: Vec<_> = pieces.filter(|(len, _)| *len > 0).collect();
        let head = self.descriptor;
        for (i, (len, data)) in pieces.iter().enumerate() {
            let address = self.reserve(*len);
            if let Some(data) = data {
                memory.write_slice(data, GuestAddress(address)).expect("a buffer is in memory");
            }
            let next = if i + 1 == pieces.len() { 0 } else { NEXT };
            let flags = next | if data.is_none() { WRITE } else { 0 };
            let index = self.descriptor;
            self.descriptor = (index + 1) % self.size;
            self.ring.descriptor(index, address, *len as u32, flags, self.descriptor);
        }
        self.ring.offer(head);
    }

    /// The next place for a buffer; they come around.
    fn reserve(&mut self, len: usize) -> u64 {
        if self.buffer + len as u64 > BUFFERS_LEN {
            self.buffer = 0;
        }
        let at = self.base + BUFFERS + self.buffer;
        self.buffer += (len as u64).next_multiple_of(16);
        at
    }

    /// Any descriptor, in the queue's table or in the one for indirect descriptors.
    fn write_descriptor(&self, input: &mut Choices<'_>) {
        let form = input.byte();
        let table = if form & 1 == 0 { self.base } else { self.base + TABLE };
        let address = match form >> 1 & 3 {
            0 => self.base + BUFFERS + u64::from(input.u16()),
            1 => self.base + TABLE,
            2 => MEMORY - u64::from(input.u16()),
            _ => input.u64(),
        };
        let len = if form & 8 == 0 { input.u16().into() } else { input.u32() };
        let (index, flags, next) = (input.u16() % 512, input.u16(), input.u16());
        self.ring.descriptor_at(table, index, address, len, flags, next);
    }
}

/// A loop for a device, and what it reports.
pub fn io_loop() -> (IoLoop, EventReceiver) {
    let (sender, events) = vmm::events::channel().expect("an eventfd");
    (IoLoop::new("fuzz", sender).expect("an epoll set"), events)
}
