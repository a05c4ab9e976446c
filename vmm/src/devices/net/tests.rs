use super::header::MAX_FRAME;
use super::*;
use crate::virtio::testing::{
    Dice, TestInterrupt, TestQueue, WRITE, activation, hostile_chains, in_both_modes, memory,
    while_rewritten,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

const MTU: u16 = 1500;
/// The header of a frame that asks for nothing, with one buffer.
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Buffers as Linux provides them, and how many hold the longest frame.
const BUFFER: usize = 1536;
const ENOUGH: usize = 43;

/// A device whose tap is one end of a pair of sockets.
struct Rig {
    rx: TestQueue,
    tx: TestQueue,
    worker: NetWorker,
    interrupt: Arc<TestInterrupt>,
    host: File,
}

fn tap() -> (File, File) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (file(ours), file(theirs))
}

fn file(fd: OwnedFd) -> File {
    fd.into()
}

fn worker(
    memory: &GuestMemoryMmap,
    [rx, tx]: [&TestQueue; 2],
    features: u64,
    tap: File,
) -> (NetWorker, Arc<TestInterrupt>) {
    let (mut activation, interrupt) = activation(memory, &[rx, tx], features);
    let queues = (activation.take_queue(0).unwrap(), activation.take_queue(1).unwrap());
    (NetWorker::new(queues, &activation, Arc::new(tap), MTU), interrupt)
}

impl Rig {
    fn new(features: u64) -> Self {
        let memory = memory();
        let rx = TestQueue::new(&memory, 0x10_0000, 256);
        let tx = TestQueue::new(&memory, 0x20_0000, 256);
        let (host, tap) = tap();
        let (worker, interrupt) = worker(&memory, [&rx, &tx], features, tap);
        Self { rx, tx, worker, interrupt, host }
    }

    /// Provides so many receive buffers; gives their addresses.
    fn provide(&mut self, count: usize, len: usize) -> Vec<u64> {
        (0..count).map(|_| self.rx.send(&[], &[len])[0]).collect()
    }

    fn receive(&mut self) {
        self.worker.receive().unwrap();
    }

    /// What the tap is given, if anything.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; HEADER + MAX_FRAME + 1];
        let len = self.host.read(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER][..], frame].concat()
}

#[test]
fn the_configuration_has_the_layout_of_the_standard() {
    let device = Net::new(tap().0, [2, 3, 4, 5, 6, 7], 1400).unwrap();
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0x78, 5, 0, 0]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 14]);
    assert_eq!(Net::new(tap().0, [0; 6], 67).err(), Some(OddMtu(67)));
}

#[test]
fn frames_are_sent_whole_and_in_order() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        for len in [60, 1514, MAX_FRAME] {
            let frame = frame(len);
            rig.tx.send(&[&[0; HEADER], &frame[..20], &frame[20..]], &[]);
            rig.worker.send().unwrap();
            assert_eq!(rig.sent().unwrap(), with_header(&frame), "{len}");
            assert_eq!(rig.tx.used().unwrap().1, 0);
        }
        assert_eq!(rig.interrupt.used(), 3);
        assert_eq!(rig.sent(), None);
    });
}

#[test]
fn what_is_answered_at_once_is_received_with_one_interrupt_for_both() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        rig.provide(ENOUGH, BUFFER);
        rig.host.write_all(&with_header(&frame(60))).unwrap();
        rig.tx.send(&[&with_header(&frame(60))], &[]);
        rig.worker.send().unwrap();
        assert!(rig.tx.used().is_some() && rig.rx.used().is_some());
        assert_eq!(rig.interrupt.used(), 1);
    });
}

#[test]
fn what_is_no_sound_frame_is_dropped_and_given_back() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        let mut udp_segments = with_header(&frame(60));
        udp_segments[..2].copy_from_slice(&[1, 5]);
        for bad in [&b"short"[..], &[0; HEADER], &[0; HEADER + 13], &udp_segments] {
            rig.tx.send(&[bad], &[]);
        }
        rig.tx.send(&[], &[100]);
        rig.tx.send(&[&vec![0; HEADER + MAX_FRAME + 1]], &[]);
        rig.tx.send(&[&with_header(&frame(60))], &[]);
        rig.worker.send().unwrap();
        assert_eq!(std::iter::from_fn(|| rig.tx.used()).count(), 7);
        assert_eq!(rig.sent().unwrap(), with_header(&frame(60)));
        assert_eq!(rig.sent(), None);
    });
}

#[test]
fn a_tap_that_takes_nothing_more_loses_frames_and_stops_nothing() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        let frame = with_header(&frame(40_000));
        let mut back = 0;
        for _ in 0..16 {
            rig.tx.send(&[&frame], &[]);
            rig.worker.send().unwrap();
            back += std::iter::from_fn(|| rig.tx.used()).count();
        }
        assert_eq!(back, 16);
        let sent = std::iter::from_fn(|| rig.sent()).count();
        assert!((1..16).contains(&sent), "{sent}");
    });
}

#[test]
fn a_frame_lies_in_as_many_buffers_as_it_needs() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        let buffers = rig.provide(2 * ENOUGH, BUFFER);
        let (small, large) = (frame(60), frame(4000));
        // The second time such a frame is expected.
        for frame in [&small, &large, &large] {
            rig.host.write_all(&with_header(frame)).unwrap();
        }
        rig.receive();
        assert_eq!(rig.rx.used().unwrap().1 as usize, HEADER + small.len());
        assert_eq!(rig.rx.read(buffers[0], HEADER), PLAIN);
        assert_eq!(rig.rx.read(buffers[0] + HEADER as u64, 60), small);
        let lengths: Vec<usize> =
            std::iter::from_fn(|| rig.rx.used()).map(|(_, len)| len as usize).collect();
        let once = [BUFFER, BUFFER, HEADER + 4000 - 2 * BUFFER];
        assert_eq!(lengths, [once, once].concat());
        for buffers in [&buffers[1..4], &buffers[4..7]] {
            let pieces = buffers.iter().zip(once);
            let whole: Vec<u8> = pieces.flat_map(|(at, len)| rig.rx.read(*at, len)).collect();
            assert_eq!(whole[NUM_BUFFERS_AT..][..2], [3, 0]);
            assert_eq!(whole[HEADER..], large);
        }
        assert_eq!(rig.interrupt.used(), 1);
    });
}

/// See [`header`].
const NUM_BUFFERS_AT: usize = 10;

#[test]
fn frames_wait_for_buffers() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        rig.provide(ENOUGH - 1, BUFFER);
        rig.host.write_all(&with_header(&frame(60))).unwrap();
        rig.receive();
        assert_eq!(rig.rx.used(), None);
        assert_eq!(rig.interrupt.used(), 0);
        // The driver is to say when there are more, and does.
        rig.worker.receiver.queue.drain_notification();
        rig.provide(1, BUFFER);
        assert_eq!(rig.worker.receiver.queue.notify.read().ok(), Some(1));
        rig.receive();
        assert!(rig.rx.used().is_some());
        assert_eq!(rig.interrupt.used(), 1);
    });
}

#[test]
fn without_merging_each_frame_has_its_buffer_and_one_that_is_too_long_is_lost() {
    in_both_modes(|| {
        let mut rig = Rig::new(feature::GUEST_CSUM);
        let buffers = rig.provide(3, HEADER + 100);
        for len in [100, 101, 99] {
            rig.host.write_all(&with_header(&frame(len))).unwrap();
        }
        rig.host.write_all(b"tiny").unwrap();
        rig.receive();
        assert_eq!(rig.rx.used().map(|(_, len)| len as usize), Some(HEADER + 100));
        assert_eq!(rig.rx.used().map(|(_, len)| len as usize), Some(HEADER + 99));
        assert_eq!(rig.rx.used(), None);
        assert_eq!(rig.rx.read(buffers[1], HEADER), PLAIN);
    });
}

#[test]
fn who_makes_checksums_itself_sees_no_word_of_them() {
    let mut rig = Rig::new(feature::MRG_RXBUF);
    let buffers = rig.provide(1, 2048);
    let mut sent = with_header(&frame(60));
    sent[0] = 2;
    rig.host.write_all(&sent).unwrap();
    rig.receive();
    assert_eq!(rig.rx.read(buffers[0], HEADER), PLAIN);
}

#[test]
fn what_was_not_filled_is_there_after_a_pause() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        rig.provide(ENOUGH, BUFFER);
        rig.host.write_all(&with_header(&frame(60))).unwrap();
        rig.receive();
        let queues = Box::new(rig.worker).stop();
        let left = queues[0].as_ref().unwrap();
        assert_eq!((left.queue.next_avail(), left.queue.next_used()), (1, 1));
    });
}

#[test]
fn a_buffer_that_holds_no_header_stops_the_device() {
    in_both_modes(|| {
        let mut rig = Rig::new(FEATURES);
        rig.provide(1, HEADER - 1);
        assert!(matches!(rig.worker.receiver.serve(), Err(NetError::SmallBuffer(11))));
    });
}

#[test]
fn each_way_of_breaking_a_chain_stops_the_device() {
    in_both_modes(|| {
        hostile_chains(16, |name, memory, queue| {
            let other = TestQueue::new(memory, 0x30_0000, 16);
            let (_host, device) = tap();
            let (mut worker, _) = worker(memory, [&queue, &other], FEATURES, device);
            assert!(worker.receiver.serve().is_err(), "received: {name}");
        });
        hostile_chains(16, |name, memory, queue| {
            let other = TestQueue::new(memory, 0x30_0000, 16);
            let (_host, device) = tap();
            let (mut worker, _) = worker(memory, [&other, &queue], FEATURES, device);
            assert!(worker.sender.serve().is_err(), "sent: {name}");
        });
    });
}

#[test]
fn descriptors_that_change_meanwhile_do_no_harm() {
    let memory = memory();
    let (mut host, device) = tap();
    for (base, sends) in [(0x10_0000, false), (0x20_0000, true)] {
        let mut queue = TestQueue::new(&memory, base, 16);
        while_rewritten(&memory, base, || {
            let mut dice = Dice(7);
            for _ in 0..2000 {
                let other = TestQueue::new(&memory, 0x30_0000, 16);
                let pair = if sends { [&other, &queue] } else { [&queue, &other] };
                let tap = device.try_clone().unwrap();
                let (mut worker, _) = worker(&memory, pair, FEATURES, tap);
                queue.descriptor(0, base + 0x1_0000, 600, if sends { 0 } else { WRITE }, 0);
                queue.offer(0);
                let _ = host.write(&with_header(&frame(dice.below(2000) as usize)));
                // What comes of it depends on who was first.
                let _ = if sends { worker.sender.serve() } else { worker.receiver.serve() };
                while host.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
            }
        });
    }
}
