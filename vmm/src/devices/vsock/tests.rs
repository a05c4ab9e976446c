//! The device with real sockets on one side and a driver's queues on the other.

use super::packet::{
    HEADER, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::*;
use crate::devices::events::{self, DeviceEvent, EventReceiver};
use crate::io_loop::{IoHandle, IoLoop, WorkerId};
use crate::virtio::testing::{
    Dice, TestInterrupt, TestQueue, WRITE, activation, hostile_chains, memory,
};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GUEST: u64 = 3;
const LOG: u32 = 1026;
const ROOM: usize = 4052;

/// A running device, and the guest's driver.
struct Rig {
    device: Vsock,
    connector: Connector,
    events: EventReceiver,
    io: IoHandle,
    worker: Option<WorkerId>,
    thread: Option<JoinHandle<io::Result<()>>>,
    memory: GuestMemoryMmap,
    interrupt: Arc<TestInterrupt>,
    rx: TestQueue,
    tx: TestQueue,
    /// Addresses of receive buffers, in the order in which they were offered.
    buffers: std::collections::VecDeque<u64>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self::without_buffers();
        rig.offer(64);
        rig
    }

    fn without_buffers() -> Self {
        let memory = memory();
        let rx = TestQueue::new(&memory, 0x10_0000, 256);
        let tx = TestQueue::new(&memory, 0x20_0000, 256);
        Self::with_queues(memory, rx, tx)
    }

    fn with_queues(memory: GuestMemoryMmap, rx: TestQueue, tx: TestQueue) -> Self {
        let (sender, events) = events::channel().unwrap();
        let io_loop = IoLoop::new("test", sender.clone()).unwrap();
        let (mut device, connector) = Vsock::new(GUEST as u32, vec![LOG], sender).unwrap();
        let event = TestQueue::new(&memory, 0x30_0000, 16);
        let (activation, interrupt) = activation(&memory, &[&rx, &tx, &event], 0);
        let worker = device.activate(activation).unwrap();
        let io = io_loop.handle();
        let worker = Some(io.add(worker, interrupt.clone()));
        let thread = Some(io_loop.spawn(Box::new(|| Ok(()))).unwrap());
        let buffers = std::collections::VecDeque::new();
        Self { device, connector, events, io, worker, thread, memory, interrupt, rx, tx, buffers }
    }

    /// Offers receive buffers.
    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.rx.send(&[], &[HEADER + ROOM])[0];
            self.buffers.push_back(address);
        }
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        let header = header.to_bytes();
        let readable: &[&[u8]] = if data.is_empty() { &[&header] } else { &[&header, data] };
        self.tx.send(readable, &[]);
        wait_for(|| self.tx.used());
    }

    /// The next packet from the device.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let written = wait_for(|| self.rx.used()).1 as usize;
        let address = self.buffers.pop_front().unwrap();
        let bytes = self.rx.read(address, written);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert_eq!(header.len as usize, written - HEADER);
        (header, bytes[HEADER..].to_vec())
    }

    fn receive_op(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, Ok(op), "{header:?}");
        header
    }

    /// Lets the device come to rest, then checks that it sends nothing.
    fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.rx.used(), None);
    }

    /// The host connects to guest port 1024, and the guest accepts.
    fn connect(&mut self) -> (UnixStream, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connector.connect(1024, theirs.into()).unwrap();
        let request = self.receive_op(Op::Request);
        assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (HOST_CID, GUEST, 1024));
        let peer = Peer { guest: 1024, host: request.src_port };
        self.send(&peer.packet(Op::Response), &[]);
        (ours, peer)
    }

    /// The guest connects to the log port.
    fn accept(&mut self, guest: u32) -> (UnixStream, Peer) {
        let peer = Peer { guest, host: LOG };
        self.send(&peer.packet(Op::Request), &[]);
        self.receive_op(Op::Response);
        let Some(DeviceEvent::Accepted { port: LOG, stream }) = self.events.next() else {
            panic!("no stream");
        };
        (UnixStream::from(stream), peer)
    }

    fn stop(&mut self) -> Vec<Option<crate::virtio::ActiveQueue>> {
        self.io.remove(self.worker.take().unwrap()).unwrap()
    }

    fn streams(&mut self) -> usize {
        self.stop();
        self.device.with_backend(|b| b.as_ref().unwrap().muxer.count())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.io.exit();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// A guest's socket.
#[derive(Clone, Copy)]
struct Peer {
    guest: u32,
    host: u32,
}

impl Peer {
    fn packet(self, op: Op) -> Header {
        Header {
            src_cid: GUEST,
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            len: 0,
            kind: TYPE_STREAM,
            op: Ok(op),
            flags: 0,
            buf_alloc: 0x4_0000,
            fwd_cnt: 0,
        }
    }

    fn data(self, data: &[u8]) -> Header {
        Header { len: data.len() as u32, ..self.packet(Op::Data) }
    }

    fn shutdown(self, flags: u32) -> Header {
        Header { flags, ..self.packet(Op::Shutdown) }
    }
}

fn wait_for<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing happened");
        std::thread::yield_now();
    }
}

fn read_exactly(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    stream.read_exact(&mut data).unwrap();
    data
}

fn at_end(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(e) if e.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_goes_both_ways() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    host.write_all(b"question").unwrap();
    let (header, data) = rig.receive();
    assert_eq!((header.op, &data[..]), (Ok(Op::Data), &b"question"[..]));
    rig.send(&peer.data(b"answer"), b"answer");
    assert_eq!(read_exactly(&mut host, 6), b"answer");
    assert!(rig.interrupt.used() > 0);
}

#[test]
fn the_guest_reaches_listed_ports_only() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.accept(5000);
    rig.send(&peer.data(b"line\n"), b"line\n");
    assert_eq!(read_exactly(&mut host, 5), b"line\n");
    for port in [0, 22, 1024, 1 << 30, u32::MAX] {
        rig.send(&Peer { guest: 5001, host: port }.packet(Op::Request), &[]);
        let reset = rig.receive_op(Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (port, 5001));
    }
    assert!(rig.events.next().is_none());
}

#[test]
fn a_refused_stream_is_closed() {
    let mut rig = Rig::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    rig.connector.connect(7, theirs.into()).unwrap();
    let request = rig.receive_op(Op::Request);
    rig.send(&Peer { guest: 7, host: request.src_port }.packet(Op::Reset), &[]);
    assert!(at_end(&mut ours));
    assert_eq!(rig.streams(), 0);
}

#[test]
fn a_large_transfer_arrives_whole_in_both_directions() {
    const TOTAL: usize = 3 << 20;
    let mut rig = Rig::new();
    let (host, peer) = rig.connect();
    let pattern = |i: usize| (i * 7 + i / 251) as u8;
    let (mut writer, mut reader) = (host.try_clone().unwrap(), host);
    let sender = std::thread::spawn(move || {
        let all: Vec<u8> = (0..TOTAL).map(pattern).collect();
        writer.write_all(&all).unwrap();
    });
    let receiver = std::thread::spawn(move || read_exactly(&mut reader, TOTAL));

    let (mut got, mut sent, mut window, mut forwarded) = (0, 0, 0u32, 0u32);
    while got < TOTAL || sent < TOTAL {
        while let Some((head, written)) = rig.rx.used() {
            let address = rig.buffers.pop_front().unwrap();
            let bytes = rig.rx.read(address, written as usize);
            let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
            (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
            for byte in &bytes[HEADER..] {
                assert_eq!(*byte, pattern(got));
                got += 1;
            }
            // The buffer goes round: the same memory, offered again.
            rig.rx.descriptor(head, address, (HEADER + ROOM) as u32, WRITE, 0);
            rig.rx.offer(head);
            rig.buffers.push_back(address);
            let credit = Header { fwd_cnt: got as u32, ..peer.packet(Op::CreditUpdate) };
            send_at(&mut rig, &credit, &[]);
        }
        let room = window as usize - (sent - forwarded as usize).min(window as usize);
        let len = room.min(TOTAL - sent).min(0x1_0000);
        if len > 0 {
            let data: Vec<u8> = (sent..sent + len).map(pattern).collect();
            let header = Header { fwd_cnt: got as u32, ..peer.data(&data) };
            send_at(&mut rig, &header, &data);
            sent += len;
        } else {
            std::thread::yield_now();
        }
    }
    sender.join().unwrap();
    assert!(receiver.join().unwrap().iter().enumerate().all(|(i, b)| *b == pattern(i)));
}

/// Sends a packet from one and the same place in guest memory.
fn send_at(rig: &mut Rig, header: &Header, data: &[u8]) {
    const AT: u64 = 0x2f_0000 - 0x2_0000;
    rig.memory.write_slice(&header.to_bytes(), GuestAddress(AT)).unwrap();
    rig.memory.write_slice(data, GuestAddress(AT + HEADER as u64)).unwrap();
    rig.tx.descriptor(0, AT, (HEADER + data.len()) as u32, 0, 0);
    rig.tx.offer(0);
    wait_for(|| rig.tx.used());
}

#[test]
fn a_slow_reader_holds_the_credit_back_and_loses_nothing() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.accept(5000);
    let chunk = vec![1u8; 8192];
    // All the credit there is, though the host reads nothing: 64 KiB.
    for _ in 0..8 {
        send_at(&mut rig, &peer.data(&chunk), &chunk);
    }
    read_exactly(&mut host, 0x1_0000);
    // The socket took that much by itself, so all of the credit was returned. Fill socket and window.
    let mut sent = 0usize;
    let mut forwarded = 0usize;
    while sent - forwarded + chunk.len() <= 0x1_0000 {
        send_at(&mut rig, &peer.data(&chunk), &chunk);
        sent += chunk.len();
        send_at(&mut rig, &peer.packet(Op::CreditRequest), &[]);
        while let Some((_, written)) = rig.rx.used() {
            let address = rig.buffers.pop_front().unwrap();
            let bytes = rig.rx.read(address, written as usize);
            let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
            // The update of the first part may still be under way.
            forwarded = (header.fwd_cnt as usize).saturating_sub(0x1_0000);
            rig.offer(1);
        }
    }
    assert!(sent - forwarded <= 0x1_0000, "never more buffered than granted");
    // The end comes after the data.
    rig.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    rig.receive_op(Op::Reset);
    assert_eq!(read_exactly(&mut host, sent), vec![1; sent]);
    assert!(at_end(&mut host));
}

#[test]
fn more_than_the_credit_is_answered_by_a_reset() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.accept(5000);
    let data = vec![0; 0x1_0001];
    rig.send(&peer.data(&data), &data);
    rig.receive_op(Op::Reset);
    assert!(at_end(&mut host));
}

#[test]
fn the_host_half_closes_and_still_reads() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    host.write_all(b"last").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rig.receive().1, b"last");
    assert_eq!(rig.receive_op(Op::Shutdown).flags, SHUTDOWN_SEND);
    rig.send(&peer.data(b"reply"), b"reply");
    assert_eq!(read_exactly(&mut host, 5), b"reply");
    rig.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    rig.receive_op(Op::Reset);
    assert!(at_end(&mut host));
}

#[test]
fn the_guest_half_closes_and_still_reads() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    rig.send(&peer.data(b"last"), b"last");
    rig.send(&peer.shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(read_exactly(&mut host, 4), b"last");
    assert!(at_end(&mut host));
    host.write_all(b"reply").unwrap();
    assert_eq!(rig.receive().1, b"reply");
    drop(host);
    assert_eq!(rig.receive_op(Op::Shutdown).flags, SHUTDOWN_BOTH);
    rig.send(&peer.packet(Op::Reset), &[]);
    rig.expect_silence();
    assert_eq!(rig.streams(), 0);
}

#[test]
fn a_guest_that_reads_no_more_is_felt_by_the_hosts_writer() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    rig.send(&peer.shutdown(SHUTDOWN_RECEIVE), &[]);
    let error = wait_for(|| host.write_all(b"x").err());
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    rig.send(&peer.data(b"still"), b"still");
    assert_eq!(read_exactly(&mut host, 5), b"still");
    drop(host);
    rig.receive_op(Op::Shutdown);
}

#[test]
fn a_host_that_closes_ends_both_directions_after_its_last_data() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    host.write_all(b"bye").unwrap();
    drop(host);
    assert_eq!(rig.receive().1, b"bye");
    assert_eq!(rig.receive_op(Op::Shutdown).flags, SHUTDOWN_BOTH);
    // What was under way is thrown away, and the guest answers as Linux does.
    rig.send(&peer.data(b"late"), b"late");
    rig.send(&peer.packet(Op::Reset), &[]);
    rig.expect_silence();
    assert_eq!(rig.streams(), 0);
}

#[test]
fn without_receive_buffers_nothing_is_lost() {
    let mut rig = Rig::without_buffers();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    rig.connector.connect(9, theirs.into()).unwrap();
    ours.write_all(&[5; 10_000]).unwrap();
    rig.offer(1);
    let request = rig.receive_op(Op::Request);
    rig.send(&Peer { guest: 9, host: request.src_port }.packet(Op::Response), &[]);
    let mut total = Vec::new();
    while total.len() < 10_000 {
        rig.offer(1);
        total.extend(rig.receive().1);
    }
    assert_eq!(total, [5; 10_000]);
    rig.expect_silence();
}

#[test]
fn the_guests_credit_is_kept() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    let small = Header { buf_alloc: 100, ..peer.packet(Op::CreditUpdate) };
    rig.send(&small, &[]);
    host.write_all(&[1; 250]).unwrap();
    assert_eq!(rig.receive().1.len(), 100);
    rig.expect_silence();
    rig.send(&Header { fwd_cnt: 100, ..small }, &[]);
    assert_eq!(rig.receive().1.len(), 100);
    rig.send(&Header { fwd_cnt: 200, ..small }, &[]);
    assert_eq!(rig.receive().1.len(), 50);
}

#[test]
fn forged_packets_are_dropped_or_reset() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    let good = peer.data(b"evil");
    for forged in [
        Header { src_cid: 4, ..good },
        Header { src_cid: HOST_CID, ..good },
        Header { dst_cid: 1, ..good },
        Header { dst_cid: GUEST, ..good },
        Header { dst_cid: u64::MAX, ..good },
    ] {
        rig.send(&forged, b"evil");
    }
    rig.expect_silence();
    for stranger in [
        Header { src_port: 1, ..good },
        Header { dst_port: LOG, ..good },
        Header { kind: 2, ..good },
        Header { op: Err(77), src_port: 1, ..good },
        Header { op: Ok(Op::Response), src_port: 1, ..good },
    ] {
        rig.send(&stranger, b"evil");
        rig.receive_op(Op::Reset);
    }
    rig.send(&Header { op: Ok(Op::Reset), src_port: 1, ..good }, &[]);
    rig.expect_silence();
    rig.send(&peer.data(b"good"), b"good");
    assert_eq!(read_exactly(&mut host, 4), b"good");
}

#[test]
fn a_length_that_lies_ends_the_connection() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    rig.send(&Header { len: 100, ..peer.packet(Op::Data) }, b"short");
    rig.receive_op(Op::Reset);
    assert!(at_end(&mut host));
}

#[test]
fn a_flood_of_requests_is_bounded() {
    let mut rig = Rig::new();
    rig.offer(128);
    let mut accepted = 0;
    for guest in 0..150 {
        rig.send(&Peer { guest, host: LOG }.packet(Op::Request), &[]);
        accepted += u32::from(rig.receive().0.op == Ok(Op::Response));
    }
    assert_eq!(accepted as usize, muxer::MAX_GUEST_STREAMS);
    // A second request on the same ports breaks the rules.
    rig.send(&Peer { guest: 0, host: LOG }.packet(Op::Request), &[]);
    rig.receive_op(Op::Reset);
    assert_eq!(rig.streams(), muxer::MAX_GUEST_STREAMS - 1);
}

#[test]
fn a_flood_without_receive_buffers_is_bounded() {
    let mut rig = Rig::without_buffers();
    for round in 0..2000u32 {
        send_at(&mut rig, &Peer { guest: round, host: 99 }.packet(Op::Request), &[]);
        let peer = Peer { guest: round, host: LOG };
        send_at(&mut rig, &peer.packet(Op::Request), &[]);
        send_at(&mut rig, &peer.packet(Op::Reset), &[]);
        while rig.events.next().is_some() {}
    }
    assert_eq!(rig.streams(), 0);
    let debt = rig.device.with_backend(|b| b.as_ref().unwrap().muxer.debt());
    assert!(debt <= 64, "{debt} packets wait");
}

#[test]
fn more_streams_than_allowed_are_closed() {
    let mut rig = Rig::without_buffers();
    let mut ends = Vec::new();
    for batch in 0..=muxer::MAX_STREAMS / 128 {
        for _ in 0..128 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            if rig.connector.connect(batch as u32, theirs.into()).is_ok() {
                ends.push(ours);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(rig.streams(), muxer::MAX_STREAMS.min(ends.len()));
}

#[test]
fn streams_survive_a_pause_and_end_with_a_reset_of_the_driver() {
    let mut rig = Rig::new();
    let (mut host, peer) = rig.connect();
    let queues = rig.stop();
    host.write_all(b"meanwhile").unwrap();
    let activation = crate::virtio::Activation {
        memory: rig.memory.clone(),
        queues,
        interrupt: rig.interrupt.clone(),
        features: 0,
    };
    let worker = rig.device.activate(activation).unwrap();
    rig.worker = Some(rig.io.add(worker, rig.interrupt.clone()));
    assert_eq!(rig.receive().1, b"meanwhile");
    rig.send(&peer.data(b"later"), b"later");
    assert_eq!(read_exactly(&mut host, 5), b"later");
    rig.stop();
    rig.device.reset();
    assert!(at_end(&mut host));
}

#[test]
fn a_restored_guest_is_told_that_its_streams_are_gone() {
    let (sender, _events) = events::channel().unwrap();
    let (mut device, _connector) = Vsock::new(9, vec![], sender.clone()).unwrap();
    let state = Rig::new().device.save();
    device.restore(&state).unwrap();
    let memory = memory();
    let rx = TestQueue::new(&memory, 0x10_0000, 256);
    let tx = TestQueue::new(&memory, 0x20_0000, 256);
    let mut event = TestQueue::new(&memory, 0x30_0000, 16);
    let buffer = event.send(&[], &[4])[0];
    let (activation, interrupt) = activation(&memory, &[&rx, &tx, &event], 0);
    let io_loop = IoLoop::new("test", sender).unwrap();
    let io = io_loop.handle();
    io.add(device.activate(activation).unwrap(), interrupt);
    let thread = io_loop.spawn(Box::new(|| Ok(()))).unwrap();
    assert_eq!(wait_for(|| event.used()), (0, 4));
    assert_eq!(event.read(buffer, 4), [0; 4]);
    let mut cid = [0; 8];
    device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 9);
    io.exit();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_hostile_chain_on_either_queue_stops_the_device() {
    hostile_chains(256, |name, memory, tx| {
        let rx = TestQueue::new(memory, 0x20_0000, 256);
        let rig = Rig::with_queues(memory.clone(), rx, tx);
        wait_for(|| rig.interrupt.needs_reset().then_some(()));
        assert!(matches!(rig.events.next(), Some(DeviceEvent::Fault(_))), "{name}");
    });
    hostile_chains(256, |name, memory, rx| {
        let tx = TestQueue::new(memory, 0x20_0000, 256);
        let rig = Rig::with_queues(memory.clone(), rx, tx);
        // The queue is looked at when there is something to be received.
        let (_ours, theirs) = UnixStream::pair().unwrap();
        rig.connector.connect(1, theirs.into()).unwrap();
        wait_for(|| rig.interrupt.needs_reset().then_some(()));
        assert!(matches!(rig.events.next(), Some(DeviceEvent::Fault(_))), "{name}");
    });
}

#[test]
fn buffers_too_small_for_a_packet_stop_the_device() {
    for size in [1, HEADER - 1] {
        let mut rig = Rig::without_buffers();
        rig.rx.send(&[], &[size]);
        rig.tx.send(&[&Peer { guest: 1, host: 1 }.packet(Op::Request).to_bytes()], &[]);
        wait_for(|| rig.interrupt.needs_reset().then_some(()));
    }
    let mut rig = Rig::without_buffers();
    rig.tx.send(&[&[0; HEADER - 1]], &[]);
    wait_for(|| rig.interrupt.needs_reset().then_some(()));
}

#[test]
fn random_packets_are_survived() {
    let mut dice = Dice(0x00ab_cdef);
    for _ in 0..5 {
        let mut rig = Rig::new();
        rig.offer(192);
        let (_host, peer) = rig.connect();
        let ports = [peer.host, LOG, 1, 1 << 30, u32::MAX];
        for _ in 0..300 {
            let data = vec![7; dice.pick(&[0, 1, 100, 4000])];
            let header = Header {
                src_cid: dice.pick(&[GUEST, GUEST, GUEST, 2, 9]),
                dst_cid: dice.pick(&[HOST_CID, HOST_CID, HOST_CID, 0]),
                src_port: dice.pick(&[peer.guest, 1, 2]),
                dst_port: dice.pick(&ports),
                len: dice.pick(&[data.len() as u32, data.len() as u32, 0, u32::MAX]),
                kind: dice.pick(&[1, 1, 1, 2]),
                op: Header::from_bytes(&{
                    let mut raw = [0; HEADER];
                    raw[30] = dice.below(9) as u8;
                    raw
                })
                .op,
                flags: dice.below(4) as u32,
                buf_alloc: dice.roll() as u32,
                fwd_cnt: dice.roll() as u32,
            };
            let mut all = header.to_bytes().to_vec();
            all.extend(&data);
            rig.memory.write_slice(&all, GuestAddress(0x2d_0000)).unwrap();
            rig.tx.descriptor(0, 0x2d_0000, all.len() as u32, 0, 0);
            rig.tx.offer(0);
            wait_for(|| rig.tx.used());
        }
        assert!(!rig.interrupt.needs_reset());
        assert!(rig.streams() <= muxer::MAX_GUEST_STREAMS + 1);
    }
}
