//! The driver's side, for unit tests and fuzz targets: lays out rings in guest memory and offers chains, good and bad.

use super::{Activation, ActiveQueue, Interrupt};
use crate::virtio::registers::{RegisterPage, RegisterPages};
use crate::virtio::setup::QueueSetup;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The registers of one device.
///
/// # Panics
/// There is no memory.
pub fn registers() -> RegisterPage {
    RegisterPages::new(1).unwrap().page(0)
}

/// Bytes of guest memory in tests, from address 0.
pub const MEMORY: u64 = 0x40_0000;

/// Descriptor flags (virtio 1.3 §2.7.5).
pub const NEXT: u16 = 1;
/// Device-writable.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// Guest memory in one piece.
pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
}

/// Counts interrupts.
#[derive(Default)]
pub struct TestInterrupt {
    used: AtomicU32,
    needs_reset: AtomicBool,
}

impl TestInterrupt {
    /// Interrupts for used buffers so far.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::SeqCst)
    }

    /// Whether the device gave up.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for TestInterrupt {
    fn signal_used(&self) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }
    fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
    fn share_used(&self) -> io::Result<EventFd> {
        EventFd::new(EFD_NONBLOCK)
    }
}

thread_local! {
    /// Whether queues that this thread makes say from which entry on each side wants to hear of it.
    static EVENT_IDX: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`TestQueue`]s negotiate `VIRTIO_F_EVENT_IDX` at the moment.
pub fn event_idx() -> bool {
    EVENT_IDX.get()
}

/// Runs a test with `VIRTIO_F_EVENT_IDX`, as Linux negotiates, and without.
pub fn in_both_modes(test: impl Fn()) {
    for event_idx in [true, false] {
        EVENT_IDX.set(event_idx);
        test();
    }
}

/// One queue, from the driver's side. Table, rings and a buffer area lie one after the other.
pub struct TestQueue {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    event_idx: bool,
    next_free: u16,
    available: u16,
    seen_used: u16,
    next_buffer: u64,
    notify: EventFd,
}

impl TestQueue {
    /// A queue of `size` descriptors whose rings and buffers lie at `base`, in 1 MiB.
    pub fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            base,
            size,
            event_idx: event_idx(),
            next_free: 0,
            available: 0,
            seen_used: 0,
            next_buffer: base + 0x1_0000,
            notify: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// The registers that describe it.
    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: self.size.into(),
            ready: true,
            descriptors: self.base,
            available: self.base + 0x4000,
            used: self.base + 0x8000,
            ..QueueSetup::default()
        }
    }

    /// The device's view of it.
    pub fn active(&self) -> ActiveQueue {
        let queue = self.setup().to_queue(self.size, self.event_idx).unwrap();
        ActiveQueue::new(queue, self.notify.try_clone().unwrap())
    }

    /// Writes one descriptor.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base, index, address, len, flags, next);
    }

    /// Writes one descriptor of a table elsewhere.
    pub fn descriptor_at(&self, table: u64, i: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(table + 16 * u64::from(i))).unwrap();
    }

    /// Offers the chain at `head`, whatever it is, and notifies the device if that wants to hear of it.
    pub fn offer(&mut self, head: u16) {
        let slot = self.base + 0x4004 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.write_available_index(self.available);
        // The device first says what it wants to hear of, and then looks for more.
        fence(Ordering::SeqCst);
        if !self.event_idx || self.awaited() == self.available.wrapping_sub(1) {
            self.notify.write(1).unwrap();
        }
    }

    /// The entry of the available ring from which on the device wants to hear of it (virtio 1.3 §2.7.10).
    fn awaited(&self) -> u16 {
        let at = self.base + 0x8004 + 8 * u64::from(self.size);
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Sets the available index, whatever it is, and notifies.
    pub fn set_available_index(&self, index: u16) {
        self.write_available_index(index);
        self.notify.write(1).unwrap();
    }

    fn write_available_index(&self, index: u16) {
        self.memory.write_obj(index.to_le(), GuestAddress(self.base + 0x4002)).unwrap();
    }

    /// Reserves a buffer in guest memory.
    pub fn buffer(&mut self, len: usize) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(16);
        at
    }

    /// Offers a well-formed chain: readable pieces with their contents, writable pieces by length.
    /// Returns the addresses of the writable ones.
    pub fn send(&mut self, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
        let (head, count) = (self.next_free, readable.len() + writable.len());
        let mut addresses = Vec::new();
        for i in 0..count {
            let index = (head + i as u16) % self.size;
            let last = i + 1 == count;
            let next = (index + 1) % self.size;
            let mut flags = if last { 0 } else { NEXT };
            let (address, len) = if let Some(data) = readable.get(i) {
                let address = self.buffer(data.len());
                self.memory.write_slice(data, GuestAddress(address)).unwrap();
                (address, data.len())
            } else {
                flags |= WRITE;
                let len = writable[i - readable.len()];
                addresses.push(self.buffer(len));
                (addresses[addresses.len() - 1], len)
            };
            self.descriptor(index, address, len as u32, flags, next);
        }
        self.next_free = (head + count as u16) % self.size;
        self.offer(head);
        addresses
    }

    /// The next used element: head and bytes written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.base + 0x8002)).unwrap();
        if index == self.seen_used {
            return None;
        }
        let slot = self.base + 0x8004 + 8 * u64::from(self.seen_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.seen_used = self.seen_used.wrapping_add(1);
        // The next entry is to interrupt (§2.7.8).
        let event = self.base + 0x4004 + 2 * u64::from(self.size);
        self.memory.write_obj(self.seen_used, GuestAddress(event)).unwrap();
        Some((head as u16, len))
    }

    /// Guest memory at `address`.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}

/// An activation with these queues.
pub fn activation(
    memory: &GuestMemoryMmap,
    queues: &[&TestQueue],
    features: u64,
) -> (Activation, Arc<TestInterrupt>) {
    let interrupt = Arc::new(TestInterrupt::default());
    let activation = Activation {
        memory: memory.clone(),
        queues: queues.iter().map(|q| Some(q.active())).collect(),
        interrupt: interrupt.clone(),
        features,
    };
    (activation, interrupt)
}

/// Offers every way of breaking a chain in turn, each to a fresh queue, and calls `check` with it.
/// `check` gets a queue in which the bad chain is the only one.
pub fn hostile_chains(size: u16, mut check: impl FnMut(&str, &GuestMemoryMmap, TestQueue)) {
    type Case = (&'static str, fn(&mut TestQueue));
    let cases: [Case; 12] = [
        ("a loop of one", |q| {
            q.descriptor(0, 0x1000, 16, NEXT, 0);
            q.offer(0);
        }),
        ("a loop of two, writable", |q| {
            q.descriptor(0, 0x1000, 16, NEXT | WRITE, 1);
            q.descriptor(1, 0x2000, 16, NEXT | WRITE, 0);
            q.offer(0);
        }),
        ("a head outside the table", |q| q.offer(q.size)),
        ("a next outside the table", |q| {
            q.descriptor(0, 0x1000, 16, NEXT, q.size + 3);
            q.offer(0);
        }),
        ("a buffer outside memory", |q| {
            q.descriptor(0, MEMORY, 16, WRITE, 0);
            q.offer(0);
        }),
        ("a buffer that leaves memory", |q| {
            q.descriptor(0, MEMORY - 8, 16, 0, 0);
            q.offer(0);
        }),
        ("a buffer that wraps", |q| {
            q.descriptor(0, u64::MAX - 7, 16, WRITE, 0);
            q.offer(0);
        }),
        ("a zero-length buffer", |q| {
            q.descriptor(0, 0x1000, 0, 0, 0);
            q.offer(0);
        }),
        ("readable after writable", |q| {
            q.descriptor(0, 0x1000, 16, NEXT | WRITE, 1);
            q.descriptor(1, 0x2000, 16, 0, 0);
            q.offer(0);
        }),
        ("an indirect table in an indirect table", |q| {
            q.descriptor(0, 0x3000, 32, INDIRECT, 0);
            q.descriptor_at(0x3000, 0, 0x3000, 32, INDIRECT, 0);
            q.offer(0);
        }),
        ("an indirect table of a broken length", |q| {
            q.descriptor(0, 0x3000, 17, INDIRECT, 0);
            q.offer(0);
        }),
        ("more available chains than descriptors", |q| q.set_available_index(q.size + 1)),
    ];
    for (name, build) in cases {
        let memory = memory();
        let mut queue = TestQueue::new(&memory, 0x10_0000, size);
        build(&mut queue);
        check(name, &memory, queue);
    }
}

/// Polls until there is something; fails the test after a minute.
pub fn wait_for<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing happened");
        std::thread::yield_now();
    }
}

/// Runs `serve` while another thread, as a hostile vCPU would, keeps rewriting the descriptor of the
/// chain at `base`: each field takes good values and bad ones.
pub fn while_rewritten(memory: &GuestMemoryMmap, base: u64, serve: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostile = TestQueue::new(memory, base, 16);
        let stop = &stop;
        scope.spawn(move || {
            let mut dice = Dice(0x5eed);
            while !stop.load(Ordering::Relaxed) {
                let address = dice.pick(&[base + 0x1_0000, base + 0x1_0000, MEMORY - 4, u64::MAX]);
                let len = dice.pick(&[16, 600, 4096, 0, u32::MAX]);
                let flags = dice.pick(&[0, WRITE, NEXT, NEXT | WRITE, INDIRECT]);
                hostile.descriptor(0, address, len, flags, dice.below(3) as u16);
            }
        });
        serve();
        stop.store(true, Ordering::Relaxed);
    });
}

/// A small deterministic generator (xorshift64*), for tests that try many inputs.
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
