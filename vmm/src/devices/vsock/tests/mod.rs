//! The device with real sockets on one side and a driver's queues on the other.

mod hostile;
mod streams;

use super::packet::{
    HEADER, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::*;
use crate::events::{self, DeviceEvent, EventReceiver};
use crate::virtio::io_loop::{IoHandle, IoLoop, WorkerId};
use crate::virtio::testing::{
    Dice, TestInterrupt, TestQueue, WRITE, activation, hostile_chains, in_both_modes, memory,
    wait_for, while_rewritten,
};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;
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

    /// The next packet that is no news of credit, which comes when the device gets to it.
    fn receive_past_updates(&mut self, op: Op) -> Header {
        let mut header = self.receive().0;
        while header.op == Ok(Op::CreditUpdate) {
            header = self.receive().0;
        }
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
        self.io.remove(&self.worker.take().unwrap(), Duration::from_secs(60)).unwrap()
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

fn read_exactly(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    stream.read_exact(&mut data).unwrap();
    data
}

fn at_end(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(e) if e.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    }
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
