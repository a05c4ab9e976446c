use super::*;
use crate::virtio::testing::Dice;

const GUEST: u64 = 3;
const PORTS: Ports = Ports { host: 1026, guest: 5000 };
const WINDOW: u32 = 1000;

fn from_guest(op: Op) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        len: 0,
        kind: TYPE_STREAM,
        op: Ok(op),
        flags: 0,
        buf_alloc: 4096,
        fwd_cnt: 0,
    }
}

fn data(len: u32) -> Header {
    Header { len, ..from_guest(Op::Data) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..from_guest(Op::Shutdown) }
}

fn op(packet: Option<Header>) -> Option<Op> {
    packet.map(|p| p.op.unwrap())
}

/// A connection that the guest opened and that was answered.
fn open() -> Connection {
    let mut c = Connection::from_guest(GUEST, &from_guest(Op::Request), WINDOW);
    assert!(c.control_due());
    assert_eq!(op(c.next_control()), Some(Op::Response));
    assert!(!c.control_due());
    c
}

#[test]
fn the_host_connects() {
    let mut c = Connection::to_guest(GUEST, PORTS, WINDOW);
    let request = c.next_control().unwrap();
    assert_eq!((request.op, request.buf_alloc), (Ok(Op::Request), WINDOW));
    assert_eq!((request.src_cid, request.src_port), (HOST_CID, PORTS.host));
    assert_eq!((request.dst_cid, request.dst_port), (GUEST, PORTS.guest));
    assert!(!c.wants_host_data());
    assert_eq!(c.receive(&from_guest(Op::Response)), Verdict::Continue);
    assert!(c.wants_host_data());
    assert_eq!(c.guest_room(), 4096);
}

#[test]
fn a_refused_connection_is_over() {
    let mut c = Connection::to_guest(GUEST, PORTS, WINDOW);
    c.next_control();
    assert_eq!(c.receive(&from_guest(Op::Reset)), Verdict::Over { answer: false });
}

#[test]
fn an_answer_other_than_yes_or_no_is_a_violation() {
    for op in [Op::Request, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        let mut c = Connection::to_guest(GUEST, PORTS, WINDOW);
        assert_eq!(c.receive(&from_guest(op)), Verdict::Violation, "{op:?}");
    }
    for op in [Op::Request, Op::Response] {
        assert_eq!(open().receive(&from_guest(op)), Verdict::Violation, "{op:?}");
    }
    assert_eq!(open().receive(&Header { op: Err(99), ..data(1) }), Verdict::Violation);
}

#[test]
fn the_guest_can_not_send_more_than_its_credit() {
    let mut c = open();
    assert_eq!(c.receive(&data(600)), Verdict::Deliver);
    assert_eq!(c.receive(&data(400)), Verdict::Deliver);
    assert_eq!(c.receive(&data(1)), Verdict::Violation);

    let mut c = open();
    assert_eq!(c.receive(&data(1000)), Verdict::Deliver);
    c.forwarded(300);
    assert_eq!(c.receive(&data(300)), Verdict::Deliver);
    assert_eq!(c.receive(&data(u32::MAX)), Verdict::Violation);
}

#[test]
fn credit_is_returned_when_half_the_window_was_passed_on() {
    let mut c = open();
    c.receive(&data(1000));
    c.forwarded(499);
    assert!(!c.control_due());
    c.forwarded(1);
    let update = c.next_control().unwrap();
    assert_eq!((update.op, update.fwd_cnt), (Ok(Op::CreditUpdate), 500));
    assert!(!c.control_due());

    // A packet with data carries the credit as well.
    c.forwarded(500);
    assert!(c.control_due());
    assert_eq!(c.data(1).fwd_cnt, 1000);
    assert!(!c.control_due());

    assert_eq!(c.receive(&from_guest(Op::CreditRequest)), Verdict::Continue);
    assert_eq!(op(c.next_control()), Some(Op::CreditUpdate));
}

#[test]
fn the_guests_credit_bounds_what_is_sent_and_lies_open_nothing() {
    let mut c = open();
    c.data(4096);
    assert_eq!(c.guest_room(), 0);
    c.receive(&Header { fwd_cnt: 96, ..from_guest(Op::CreditUpdate) });
    assert_eq!(c.guest_room(), 96);
    // More consumed than was ever sent: modulo 2^32 that is far too much under way.
    c.receive(&Header { fwd_cnt: 5000, ..from_guest(Op::CreditUpdate) });
    assert_eq!(c.guest_room(), 0);
    // The buffer shrinks below what is under way.
    c.receive(&Header { buf_alloc: 7, ..from_guest(Op::CreditUpdate) });
    assert_eq!(c.guest_room(), 0);
}

#[test]
fn counters_wrap_around() {
    let mut c = open();
    let mut dice = Dice(1);
    let mut total = 0u64;
    c.received = u32::MAX - 1500;
    c.forwarded = c.received;
    c.sent = u32::MAX - 1500;
    c.guest_fwd_cnt = c.sent;
    let mut fwd = c.sent;
    while total < 10_000 {
        let len = 1 + dice.below(u64::from(WINDOW)) as u32;
        assert_eq!(c.receive(&Header { fwd_cnt: fwd, ..data(len) }), Verdict::Deliver);
        assert_eq!(c.receive(&Header { fwd_cnt: fwd, ..data(WINDOW) }), Verdict::Violation);
        c.forwarded(len as usize);
        assert_eq!(c.guest_room(), 4096);
        c.data(len as usize);
        assert_eq!(c.guest_room(), 4096 - len as usize);
        fwd = fwd.wrapping_add(len);
        total += u64::from(len);
    }
}

#[test]
fn the_guest_closes_one_direction() {
    let mut c = open();
    assert_eq!(c.receive(&shutdown(SHUTDOWN_SEND)), Verdict::GuestWroteLast);
    assert!(c.wants_host_data());
    assert_eq!(c.receive(&data(1)), Verdict::Violation);

    let mut c = open();
    assert_eq!(c.receive(&shutdown(SHUTDOWN_RECEIVE)), Verdict::Continue);
    assert!(!c.wants_host_data());
    assert_eq!(c.receive(&data(1)), Verdict::Deliver);
    assert_eq!(c.receive(&shutdown(SHUTDOWN_SEND)), Verdict::Over { answer: true });
}

#[test]
fn a_shutdown_twice_or_of_nothing_is_harmless() {
    let mut c = open();
    assert_eq!(c.receive(&shutdown(0)), Verdict::Continue);
    assert_eq!(c.receive(&shutdown(!SHUTDOWN_BOTH)), Verdict::Continue);
    assert_eq!(c.receive(&shutdown(SHUTDOWN_SEND)), Verdict::GuestWroteLast);
    assert_eq!(c.receive(&shutdown(SHUTDOWN_SEND)), Verdict::Continue);
}

#[test]
fn the_host_closes_one_direction_then_the_other() {
    let mut c = open();
    c.host_wrote_last();
    let packet = c.next_control().unwrap();
    assert_eq!((packet.op, packet.flags), (Ok(Op::Shutdown), SHUTDOWN_SEND));
    assert!(!c.control_due());
    assert!(!c.wants_host_data());
    assert_eq!(c.receive(&data(10)), Verdict::Deliver);
    c.host_reads_no_more();
    let packet = c.next_control().unwrap();
    assert_eq!((packet.op, packet.flags), (Ok(Op::Shutdown), SHUTDOWN_BOTH));
    assert_eq!(c.receive(&from_guest(Op::Reset)), Verdict::Over { answer: false });
}

#[test]
fn an_end_before_the_answer_is_told_after_it() {
    let mut c = Connection::to_guest(GUEST, PORTS, WINDOW);
    c.host_wrote_last();
    assert_eq!(op(c.next_control()), Some(Op::Request));
    assert!(!c.control_due());
    assert_eq!(op(c.next_control()), None);
    c.receive(&from_guest(Op::Response));
    assert_eq!(op(c.next_control()), Some(Op::Shutdown));
}

#[test]
fn any_sequence_of_packets_keeps_the_books() {
    let mut dice = Dice(77);
    for _ in 0..300 {
        let mut c = open();
        let (mut buffered, mut done) = (0u32, false);
        for _ in 0..100 {
            let op = dice.pick(&[Op::Data, Op::Data, Op::Data, Op::CreditUpdate, Op::Shutdown]);
            let packet = Header {
                len: dice.below(600) as u32,
                flags: dice.pick(&[0, 0, 0, 1, 2]),
                buf_alloc: dice.roll() as u32,
                fwd_cnt: dice.roll() as u32,
                ..from_guest(op)
            };
            match c.receive(&packet) {
                Verdict::Deliver => buffered += packet.len,
                Verdict::Violation | Verdict::Over { .. } => done = true,
                _ => {}
            }
            assert!(buffered <= WINDOW);
            assert!(c.guest_room() <= packet.buf_alloc as usize);
            if done {
                break;
            }
            let passed = dice.below(u64::from(buffered) + 1) as u32;
            c.forwarded(passed as usize);
            buffered -= passed;
            while c.control_due() {
                assert!(c.next_control().is_some());
            }
        }
    }
}
