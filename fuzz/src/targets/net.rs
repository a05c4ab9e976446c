//! virtio-net's chains and headers, with a pair of sockets for the tap. Reaches frames both ways, those that lie in
//! several buffers, and whatever a driver may say of segments and checksums.

use crate::choices::Choices;
use crate::guest::{Guest, io_loop};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{Read, Write};
use vmm::devices::net::{FEATURES, HEADER, Net};

const RX: usize = 0;
const TX: usize = 1;
/// Longest Ethernet frame of an IP packet.
const MAX_FRAME: usize = 18 + 65_535;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (host, tap) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
    let mut host = File::from(host);
    let mut device = Net::new(File::from(tap), [2; 6], 1500).expect("an interface");
    let (io, _events) = io_loop();
    let (form, features) = (input.byte(), FEATURES & !u64::from(input.u32()));
    let mut guest =
        Guest::with_features(&mut device, io, form & 1 != 0, features & ((1 << 24) - 1));
    let mut frame = vec![0; HEADER + MAX_FRAME + 1];
    while !input.is_empty() {
        match input.below(6) {
            0 => {
                let queue = input.below(2);
                guest.act(queue, &mut input);
            }
            1 => {
                let header = input.bytes(HEADER);
                let len = usize::from(input.u16());
                guest.send(TX, &[header, &vec![7; len]].concat(), 0);
            }
            2 => {
                for _ in 0..input.byte() {
                    guest.send(RX, &[], 1536);
                }
            }
            3 => {
                let len = usize::from(input.u16());
                // Its header is the host kernel's to make; the device passes it on.
                let _ = host.write(&[input.bytes(HEADER), &vec![9; len]].concat());
            }
            _ => guest.run_device(),
        }
        while let Ok(len @ 1..) = host.read(&mut frame) {
            assert!(len <= HEADER + MAX_FRAME, "a frame of {len} bytes");
            let (flags, segments) = (frame[0], frame[1]);
            assert!(
                flags <= 1 && [0, 1, 4].contains(&segments),
                "the host is told {flags} and {segments}"
            );
        }
    }
    guest.run_device();
}
