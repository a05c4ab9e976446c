//! The vsock device: packets in chains of a guest, streams with real sockets on the host's side. Reaches
//! connections from both sides, data both ways, credit, both half-closes and resets.

use crate::choices::Choices;
use crate::guest::{Guest, io_loop};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vmm::devices::vsock::Vsock;
use vmm::devices::vsock::packet::{HEADER, HOST_CID, Header};
use vmm::events::{DeviceEvent, channel};

const GUEST: u32 = 3;
const RX: usize = 0;
const TX: usize = 1;
const MOST_STREAMS: usize = 8;
/// The port that the guest may connect to, and the first of those that the host connects from.
const LOG: u32 = 1026;
const FIRST_PORT: u32 = 1 << 30;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let (sender, events) = channel().expect("an eventfd");
    let (mut device, connector) = Vsock::new(GUEST, vec![LOG], sender).expect("an eventfd");
    let (io, _faults) = io_loop();
    let mut guest = Guest::new(&mut device, io, input.byte() & 1 != 0);
    let mut streams: Vec<UnixStream> = Vec::new();
    while !input.is_empty() {
        match input.below(8) {
            0 => {
                let queue = input.below(3);
                guest.act(queue, &mut input);
            }
            1 => {
                let (header, data) = packet(&mut input);
                guest.send(TX, &[&header[..], data].concat(), 0);
            }
            2 => guest.send(RX, &[], HEADER + usize::from(input.u16() % 8192)),
            3 if streams.len() < MOST_STREAMS => {
                let (ours, theirs) = UnixStream::pair().expect("a socket pair");
                let _ = connector.connect(1024, theirs.into());
                keep(ours, &mut streams);
            }
            4 if !streams.is_empty() => drop(streams.swap_remove(input.below(streams.len()))),
            5 if !streams.is_empty() => {
                let (which, len) = (input.below(streams.len()), usize::from(input.u16()));
                let _ = streams[which].write(&vec![7; len]);
            }
            6 if !streams.is_empty() => {
                let (which, len) = (input.below(streams.len()), usize::from(input.u16()));
                let _ = streams[which].read(&mut vec![0; len]);
            }
            _ => guest.run_device(),
        }
        while let Some(event) = events.next() {
            if let DeviceEvent::Accepted { port, stream } = event {
                assert_eq!(port, LOG, "a stream to a port that nobody listens on");
                keep(stream.into(), &mut streams);
            }
        }
    }
    guest.run_device();
}

fn keep(stream: UnixStream, streams: &mut Vec<UnixStream>) {
    stream.set_nonblocking(true).expect("a socket");
    streams.push(stream);
}

/// A packet of the guest's between ports that exist, or nearly.
fn packet<'a>(input: &mut Choices<'a>) -> ([u8; HEADER], &'a [u8]) {
    let (form, op) = (input.byte(), input.byte() % 10);
    let data = if op == 5 { usize::from(input.byte()) } else { 0 };
    let from_host = form & 1 != 0;
    let mut bytes = [0; HEADER];
    bytes[30] = op;
    let template = Header::from_bytes(&bytes);
    let header = Header {
        src_cid: GUEST.into(),
        dst_cid: if form & 2 != 0 { input.byte().into() } else { HOST_CID },
        src_port: if from_host { 1024 } else { 5000 + u32::from(form >> 6) },
        dst_port: if from_host { FIRST_PORT + u32::from(form >> 6) } else { LOG },
        len: if form & 4 != 0 { input.u32() } else { data as u32 },
        kind: 1 + u16::from(form >> 3 & 1),
        flags: if op == 4 { input.byte().into() } else { 0 },
        buf_alloc: if form & 16 != 0 { input.u32() } else { 0x4_0000 },
        fwd_cnt: if form & 32 != 0 { input.u32() } else { 0 },
        ..template
    };
    (header.to_bytes(), input.bytes(data))
}
