//! vsock's packets and the state of one connection, without sockets. Checks that whatever a guest sends, it
//! gets no more room than its window, and the host sends no more than the guest's credit.

use crate::choices::Choices;
use vmm::devices::vsock::connection::{Connection, Ports, Verdict};
use vmm::devices::vsock::packet::{HEADER, Header};

const WINDOW: u32 = 0x1_0000;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let mut connection = if input.byte() & 1 == 0 {
        Connection::to_guest(3, Ports { host: 1 << 30, guest: 1024 }, WINDOW)
    } else {
        Connection::from_guest(3, &header(&mut input), WINDOW)
    };
    let mut buffered = 0;
    while !input.is_empty() {
        match input.below(6) {
            0 => {
                let packet = header(&mut input);
                match connection.receive(&packet) {
                    Verdict::Deliver => buffered += packet.len,
                    Verdict::Over { .. } | Verdict::Violation => return,
                    Verdict::Continue | Verdict::GuestWroteLast => {}
                }
                assert!(buffered <= WINDOW, "more than the window");
            }
            1 => {
                let len = buffered.min(input.u16().into());
                connection.forwarded(len as usize);
                buffered -= len;
            }
            2 if connection.wants_host_data() => {
                let len = connection.guest_room().min(input.u16().into());
                let before = connection.guest_room();
                connection.data(len);
                assert_eq!(connection.guest_room(), before - len);
            }
            3 => connection.host_wrote_last(),
            4 => connection.host_reads_no_more(),
            _ => {
                let due = connection.control_due();
                assert_eq!(connection.next_control().is_some(), due);
            }
        }
    }
}

/// Any header; its operation is a known one more often than by chance.
fn header(input: &mut Choices<'_>) -> Header {
    let mut bytes = [0; HEADER];
    let taken = input.bytes(HEADER - 16);
    bytes[16..16 + taken.len()].copy_from_slice(taken);
    let header = Header::from_bytes(&bytes);
    assert_eq!(header.to_bytes(), bytes, "a header changes when it is written again");
    header
}
