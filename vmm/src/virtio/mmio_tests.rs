use super::*;
use crate::devices::rng::Rng;
use crate::events::{self, EventReceiver};
use crate::virtio::io_loop::IoLoop;
use crate::virtio::testing::registers;
use crate::virtio::testing::{
    Dice, TestInterrupt, TestQueue, event_idx, in_both_modes, memory, wait_for,
};
use crate::virtio::{Watcher, Worker};
use std::thread::JoinHandle;

/// A transport before an rng, and the thread of its worker.
struct Rig {
    transport: Arc<MmioTransport>,
    memory: GuestMemoryMmap,
    events: EventReceiver,
    io: IoHandle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Rig {
    fn new() -> Self {
        let (sender, events) = events::channel().unwrap();
        let io_loop = IoLoop::new("test", sender).unwrap();
        let io = io_loop.handle();
        let memory = memory();
        let page = registers();
        let transport =
            MmioTransport::new(page, Box::new(Rng), memory.clone(), io_loop.handle()).unwrap();
        let thread = Some(io_loop.spawn(Box::new(|| Ok(()))).unwrap());
        Self { transport: Arc::new(transport), memory, events, io, thread }
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0xffu8; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// The driver's steps of virtio 1.3 §3.1.1 up to FEATURES_OK.
    fn negotiate(&self) {
        for status in [0, 1, 3] {
            self.write(register::STATUS, status);
        }
        let features = F_VERSION_1 | if event_idx() { F_EVENT_IDX } else { 0 };
        for half in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(register::STATUS, 11);
        assert_eq!(self.read(register::STATUS), 11);
    }

    fn set_up(&self, queue: &QueueSetup) {
        self.write(register::QUEUE_SEL, 0);
        self.write(register::QUEUE_SIZE, queue.size);
        self.write(register::QUEUE_DESC_LOW, queue.descriptors as u32);
        self.write(register::QUEUE_DESC_HIGH, (queue.descriptors >> 32) as u32);
        self.write(register::QUEUE_DRIVER_LOW, queue.available as u32);
        self.write(register::QUEUE_DRIVER_HIGH, (queue.available >> 32) as u32);
        self.write(register::QUEUE_DEVICE_LOW, queue.used as u32);
        self.write(register::QUEUE_DEVICE_HIGH, (queue.used >> 32) as u32);
        self.write(register::QUEUE_READY, 1);
    }

    fn start(&self, queue: &QueueSetup) {
        self.negotiate();
        self.set_up(queue);
        self.write(register::STATUS, 15);
    }

    /// Waits until the worker's thread has done what it was asked.
    fn settle(&self) {
        let idle = Stubborn(std::sync::mpsc::channel().1);
        let id = self.io.add(Box::new(idle), Arc::new(TestInterrupt::default()));
        self.io.remove(&id, Duration::from_secs(60)).unwrap();
    }

    fn needs_reset(&self) -> bool {
        self.read(register::STATUS) & status::NEEDS_RESET != 0
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.io.exit();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

#[test]
fn a_driver_finds_the_device_and_gets_served() {
    in_both_modes(|| {
        let rig = Rig::new();
        assert_eq!(rig.read(register::MAGIC), 0x7472_6976);
        assert_eq!(rig.read(register::VERSION), 2);
        assert_eq!(rig.read(register::DEVICE_ID), 4);
        assert_eq!(rig.read(register::QUEUE_SIZE_MAX), 16);
        assert_eq!(rig.read(register::SHM_LEN_LOW), u32::MAX);
        let mut queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        assert_eq!(rig.read(register::STATUS), 15);

        queue.send(&[], &[32]);
        rig.write(register::QUEUE_NOTIFY, 0);
        assert_eq!(wait_for(|| queue.used()), (0, 32));
        assert_eq!(wait_for(|| rig.transport.irq().read().ok()), 1);
        assert_eq!(rig.read(register::INTERRUPT_STATUS), 1);
    });
}

#[test]
fn a_port_takes_notifications_as_the_register_does() {
    in_both_modes(|| {
        let rig = Rig::new();
        assert_eq!(rig.read(register::NOTIFY_PORT), 0, "nothing is promised that there is not");
        rig.transport.set_notify_port(0xc002);
        let port = NotifyPort(rig.transport.clone());
        let mut queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        assert_eq!(rig.read(register::NOTIFY_PORT), 0xc002, "also after a reset");
        rig.settle();
        queue.send(&[], &[32]);
        for (offset, junk) in [(0, &[0_u8][..]), (0, &[0; 4]), (1, &[0; 2]), (0, &[9, 9])] {
            port.write(offset, junk);
        }
        rig.settle();
        assert_eq!(queue.used(), None);
        port.write(0, &[0, 0]);
        assert_eq!(wait_for(|| queue.used()), (0, 32));
    });
}

#[test]
fn features_without_version_1_or_never_offered_are_refused() {
    in_both_modes(|| {
        for (low, high) in [(0, 0), (1 << 5, 1), (0, 3)] {
            let rig = Rig::new();
            for status in [1, 3] {
                rig.write(register::STATUS, status);
            }
            rig.write(register::DRIVER_FEATURES_SEL, 0);
            rig.write(register::DRIVER_FEATURES, low);
            rig.write(register::DRIVER_FEATURES_SEL, 1);
            rig.write(register::DRIVER_FEATURES, high);
            rig.write(register::STATUS, 11);
            assert_eq!(rig.read(register::STATUS), 3, "{low:#x} {high:#x}");
            rig.write(register::STATUS, 15);
            assert_eq!(rig.read(register::STATUS), 3);
        }
    });
}

#[test]
fn steps_out_of_order_are_ignored() {
    in_both_modes(|| {
        let rig = Rig::new();
        for status in [2, 4, 8, 15, 3] {
            rig.write(register::STATUS, status);
            assert_eq!(rig.read(register::STATUS), 0, "{status}");
        }
        rig.negotiate();
        rig.write(register::STATUS, 3);
        assert_eq!(rig.read(register::STATUS), 11, "a bit can't be taken back");
        rig.write(register::DRIVER_FEATURES_SEL, 0);
        rig.write(register::DRIVER_FEATURES, u32::MAX);
        rig.write(register::STATUS, 15);
        assert!(!rig.front_features_changed());
    });
}

impl Rig {
    fn front_features_changed(&self) -> bool {
        self.transport.front().driver_features & !F_EVENT_IDX != F_VERSION_1
    }
}

#[test]
fn registers_rewritten_after_driver_ok_change_nothing() {
    in_both_modes(|| {
        let rig = Rig::new();
        let mut queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        let before = rig.transport.front().queues.clone();
        for value in [0, 1, 0x1000, u32::MAX] {
            for register in (0x30..0xb0).step_by(4) {
                if ![register::STATUS, register::QUEUE_SEL, register::QUEUE_NOTIFY]
                    .contains(&register)
                {
                    rig.write(register, value);
                }
            }
        }
        assert_eq!(rig.transport.front().queues, before);
        queue.send(&[], &[8]);
        rig.write(register::QUEUE_NOTIFY, 0);
        assert_eq!(wait_for(|| queue.used()), (0, 8));
    });
}

#[test]
fn a_queue_that_can_not_be_one_stops_the_device_until_a_reset() {
    in_both_modes(|| {
        let rig = Rig::new();
        let good = TestQueue::new(&rig.memory, 0x10_0000, 16).setup();
        let bad = [
            QueueSetup { size: 0, ..good.clone() },
            QueueSetup { size: 12, ..good.clone() },
            QueueSetup { size: 32, ..good.clone() },
            QueueSetup { size: 0x1_0010, ..good.clone() },
            QueueSetup { descriptors: 0x10_0008, ..good.clone() },
            QueueSetup { used: 0x10_8002, ..good.clone() },
            QueueSetup { available: 0x10_4001, ..good.clone() },
            QueueSetup { descriptors: u64::MAX - 15, ..good.clone() },
            QueueSetup { used: crate::virtio::testing::MEMORY - 64, ..good.clone() },
            QueueSetup { available: 1 << 40, ..good.clone() },
        ];
        for setup in &bad {
            rig.start(setup);
            assert!(rig.needs_reset(), "{setup:?}");
            assert!(rig.events.next().is_some());
            assert_eq!(rig.read(register::INTERRUPT_STATUS), 3);
            rig.write(register::INTERRUPT_ACK, 3);
            assert_eq!(rig.read(register::INTERRUPT_STATUS), 1);
        }
        rig.negotiate();
        rig.write(register::STATUS, 15);
        assert!(rig.needs_reset(), "a queue that was never set up");
        rig.start(&good);
        assert!(!rig.needs_reset());
    });
}

#[test]
fn a_bad_ring_needs_a_reset_after_which_the_device_works() {
    in_both_modes(|| {
        let rig = Rig::new();
        let mut queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        queue.set_available_index(999);
        rig.write(register::QUEUE_NOTIFY, 0);
        wait_for(|| rig.needs_reset().then_some(()));
        queue = TestQueue::new(&rig.memory, 0x20_0000, 16);
        rig.start(&queue.setup());
        queue.send(&[], &[8]);
        rig.write(register::QUEUE_NOTIFY, 0);
        assert_eq!(wait_for(|| queue.used()), (0, 8));
    });
}

#[test]
fn a_device_goes_on_after_a_pause() {
    in_both_modes(|| {
        let rig = Rig::new();
        let mut queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        queue.send(&[], &[8]);
        rig.write(register::QUEUE_NOTIFY, 0);
        assert_eq!(wait_for(|| queue.used()), (0, 8));
        rig.transport.pause(Duration::from_secs(10)).unwrap();
        queue.send(&[], &[9]);
        assert_eq!(rig.transport.front().queues[0].next_available, 1);
        rig.transport.resume();
        assert_eq!(wait_for(|| queue.used()), (1, 9));
    });
}

/// A device whose worker does not let go until it is told to.
struct Stubborn(std::sync::mpsc::Receiver<()>);

impl Worker for Stubborn {
    fn start(&mut self, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        Ok(())
    }
    fn handle(&mut self, _: u32, _: u32, _: &mut Watcher<'_>) -> Result<(), WorkerError> {
        Ok(())
    }
    fn quiesce(&mut self) {
        let _ = self.0.recv();
    }
    fn stop(self: Box<Self>) -> Vec<Option<ActiveQueue>> {
        Vec::new()
    }
}

struct StubbornDevice(Option<Stubborn>);

impl VirtioDevice for StubbornDevice {
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }
    fn features(&self) -> u64 {
        F_EVENT_IDX
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, _: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(self.0.take().ok_or(ActivateError::MissingQueue(0))?))
    }
}

#[test]
fn a_pause_that_takes_too_long_is_none() {
    in_both_modes(|| {
        let rig = Rig::new();
        let (let_go, told) = std::sync::mpsc::channel();
        let device = StubbornDevice(Some(Stubborn(told)));
        rig.transport.replace(Box::new(device), rig.io.clone()).unwrap();
        let queue = TestQueue::new(&rig.memory, 0x10_0000, 16);
        rig.start(&queue.setup());
        assert!(rig.transport.pause(Duration::from_millis(50)).is_err());
        // Nothing is activated that is there already.
        rig.transport.resume();
        assert!(!rig.needs_reset());
        let_go.send(()).unwrap();
        let_go.send(()).unwrap();
        rig.transport.pause(Duration::from_secs(10)).unwrap();
        rig.write(register::STATUS, 0);
        assert_eq!(rig.read(register::STATUS), 0);
    });
}

#[test]
fn any_sequence_of_accesses_is_survived() {
    in_both_modes(|| {
        let mut dice = Dice(0xfeed);
        for _ in 0..20 {
            let rig = Rig::new();
            rig.start(&TestQueue::new(&rig.memory, 0x10_0000, 16).setup());
            for _ in 0..500 {
                let offset = dice.pick(&[
                    0x10, 0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x70, 0x80, 0x84,
                    0x90, 0xa0, 0xfc, 0x100, 0x13c, 0xff8,
                ]);
                let mut data = dice.pick(&[0, 1, 3, 11, 15, 16, 0x1000, u64::MAX]).to_le_bytes();
                let len = dice.pick(&[1, 2, 4, 4, 4, 4, 8]);
                if dice.below(4) == 0 {
                    rig.transport.read(offset, &mut data[..len]);
                } else {
                    rig.transport.write(offset, &data[..len]);
                }
            }
            rig.write(register::STATUS, 0);
            assert_eq!(rig.read(register::STATUS), 0);
        }
    });
}

#[test]
fn a_driver_makes_the_interrupt_a_message_where_it_may() {
    let rig = Rig::new();
    let told = || {
        rig.write(register::MESSAGE_ADDRESS, 0xfee0_1000);
        rig.write(register::MESSAGE_DATA, 0x31);
    };
    assert_eq!(rig.read(register::MESSAGE_ADDRESS), 0);
    told();
    let kvm = crate::kvm::open_at(crate::kvm::DEVICE.as_ref()).unwrap();
    let routes = Arc::new(Routes::new(Arc::new(crate::kvm::create_vm(&kvm).unwrap())));
    rig.transport.set_routes(routes.clone(), 7);
    assert_ne!(rig.read(register::MESSAGE_ADDRESS), 0);
    assert_eq!(routes.message(7), None);
    told();
    let message = Message { address: 0xfee0_1000, data: 0x31 };
    assert_eq!((routes.message(7), routes.message(8)), (Some(message), None));
    // It stays what it is, and can become another.
    rig.write(register::STATUS, 0);
    assert_eq!(routes.message(7), Some(message));
    assert_ne!(rig.read(register::MESSAGE_ADDRESS), 0);
    rig.write(register::MESSAGE_DATA, 0x32);
    assert_eq!(routes.message(7), Some(Message { data: 0x32, ..message }));
}
