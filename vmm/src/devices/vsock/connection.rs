//! One vsock connection as pure state: packets and facts about the host's socket go in, verdicts and
//! packets come out. No descriptors, no guest memory.
//!
//! ```text
//!  host connects ──▶ Requested ──RESPONSE──▶ Open ◀──RESPONSE sent── guest's REQUEST
//!                        │ RST                │ RST, or SHUTDOWN of both directions,
//!                        ▼                    ▼ or anything that breaks the rules
//!                      gone                 gone
//! ```
//!
//! **Credit** (virtio 1.3 §5.10.6.3). Each side says how much it can buffer (`buf_alloc`) and how many
//! bytes it has passed on since the beginning (`fwd_cnt`, modulo 2^32); the other never has more than
//! the difference under way. What the guest may send is accounted here, by what was received and
//! passed on; what the guest *says* it can take only limits what is sent to it.
//!
//! **Half-close** (§5.10.6.5). A SHUTDOWN names the directions that its sender is done with. The end
//! of the host's stream becomes SHUTDOWN(send) after the last byte; the guest's SHUTDOWN(send) ends
//! the host's stream after the last byte that is still buffered.

use super::packet::{
    HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// Both ends' ports: what tells one connection of a guest from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The port on the host (CID 2).
    pub host: u32,
    /// The port in the guest.
    pub guest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host asked; the guest has not answered.
    Requested,
    /// Data may flow.
    Open,
}

/// What to do after a packet of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing but to send what may now be due.
    Continue,
    /// Take the packet's data: pass it on or buffer it.
    Deliver,
    /// The guest is done with sending; when what is buffered has been passed on, end the stream.
    GuestWroteLast,
    /// The connection is over: pass on what is buffered, then close. A reset is to be sent first
    /// when `answer` is set.
    Over {
        /// Whether the guest waits for a reset.
        answer: bool,
    },
    /// The guest broke the rules: reset and close at once.
    Violation,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    guest_cid: u64,
    ports: Ports,
    state: State,
    /// Opening packet that is still to be sent.
    opening: Option<Op>,
    /// Directions the guest is done with.
    guest_done: u32,
    /// Directions the host is done with, and how many of them the guest was told.
    host_done: u32,
    host_told: u32,
    /// Room for the guest's data.
    window: u32,
    /// Bytes received from the guest, and of these passed on; modulo 2^32.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last saw it.
    forwarded_told: u32,
    credit_wanted: bool,
    /// Bytes sent to the guest, and the guest's credit; modulo 2^32.
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
}

impl Connection {
    /// The host asks for a connection; `window` is how much the guest may send ahead, bytes.
    pub fn to_guest(guest_cid: u64, ports: Ports, window: u32) -> Self {
        Self {
            guest_cid,
            ports,
            state: State::Requested,
            opening: Some(Op::Request),
            guest_done: 0,
            host_done: 0,
            host_told: 0,
            window,
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            credit_wanted: false,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
        }
    }

    /// Accepts the guest's `request`.
    pub fn from_guest(guest_cid: u64, request: &Header, window: u32) -> Self {
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        Self {
            state: State::Open,
            opening: Some(Op::Response),
            guest_buf_alloc: request.buf_alloc,
            guest_fwd_cnt: request.fwd_cnt,
            ..Self::to_guest(guest_cid, ports, window)
        }
    }

    /// Both ends' ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Takes in a packet of this connection.
    pub fn receive(&mut self, packet: &Header) -> Verdict {
        self.guest_buf_alloc = packet.buf_alloc;
        self.guest_fwd_cnt = packet.fwd_cnt;
        let Ok(op) = packet.op else { return Verdict::Violation };
        match (self.state, op) {
            (_, Op::Reset) => Verdict::Over { answer: false },
            (State::Requested, Op::Response) => {
                self.state = State::Open;
                Verdict::Continue
            }
            (State::Requested, _) | (State::Open, Op::Request | Op::Response) => Verdict::Violation,
            (State::Open, Op::CreditUpdate) => Verdict::Continue,
            (State::Open, Op::CreditRequest) => {
                self.credit_wanted = true;
                Verdict::Continue
            }
            (State::Open, Op::Data) => self.receive_data(packet.len),
            (State::Open, Op::Shutdown) => self.receive_shutdown(packet.flags),
        }
    }

    fn receive_data(&mut self, len: u32) -> Verdict {
        let buffered = self.received.wrapping_sub(self.forwarded);
        if self.guest_done & SHUTDOWN_SEND != 0 || len > self.window.saturating_sub(buffered) {
            return Verdict::Violation;
        }
        self.received = self.received.wrapping_add(len);
        Verdict::Deliver
    }

    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        let news = flags & SHUTDOWN_BOTH & !self.guest_done;
        self.guest_done |= news;
        if self.guest_done == SHUTDOWN_BOTH {
            Verdict::Over { answer: true }
        } else if news & SHUTDOWN_SEND != 0 {
            Verdict::GuestWroteLast
        } else {
            Verdict::Continue
        }
    }

    /// `len` bytes of the guest's data were passed on, or thrown away because nobody wants them.
    pub fn forwarded(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// The host will write no more: after what was sent already, the guest is to be told.
    pub fn host_wrote_last(&mut self) {
        self.host_done |= SHUTDOWN_SEND;
    }

    /// The host will read no more.
    pub fn host_reads_no_more(&mut self) {
        self.host_done |= SHUTDOWN_RECEIVE;
    }

    /// Whether the guest said that it will send no more.
    pub fn guest_wrote_last(&self) -> bool {
        self.guest_done & SHUTDOWN_SEND != 0
    }

    /// Whether the guest said that it will receive no more.
    pub fn guest_reads_no_more(&self) -> bool {
        self.guest_done & SHUTDOWN_RECEIVE != 0
    }

    /// Whether the guest still takes data, and the host still has some to read.
    pub fn wants_host_data(&self) -> bool {
        self.state == State::Open
            && self.guest_done & SHUTDOWN_RECEIVE == 0
            && self.host_done & SHUTDOWN_SEND == 0
    }

    /// How many bytes the guest can take now.
    pub fn guest_room(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(under_way) as usize
    }

    /// The next packet without data that is due; each is returned once.
    pub fn next_control(&mut self) -> Option<Header> {
        if let Some(op) = self.opening.take() {
            return Some(self.packet(op));
        }
        if self.state == State::Requested {
            return None;
        }
        if self.credit_due() {
            return Some(self.packet(Op::CreditUpdate));
        }
        if self.host_done & !self.host_told != 0 {
            self.host_told = self.host_done;
            let mut packet = self.packet(Op::Shutdown);
            packet.flags = self.host_done;
            return Some(packet);
        }
        None
    }

    /// Whether [`Self::next_control`] would return a packet.
    pub fn control_due(&self) -> bool {
        let news = self.credit_due() || self.host_done & !self.host_told != 0;
        self.opening.is_some() || self.state == State::Open && news
    }

    /// The guest asked, or half of what it may send ahead has been passed on since it last heard.
    fn credit_due(&self) -> bool {
        let news = self.forwarded.wrapping_sub(self.forwarded_told);
        self.credit_wanted || (news >= self.window / 2 && !self.guest_wrote_last())
    }

    /// The header of `len` bytes that are sent now; `len` is within [`Self::guest_room`].
    pub fn data(&mut self, len: usize) -> Header {
        self.sent = self.sent.wrapping_add(len as u32);
        let mut packet = self.packet(Op::Data);
        packet.len = len as u32;
        packet
    }

    /// A reset of this connection.
    pub fn reset(&mut self) -> Header {
        self.packet(Op::Reset)
    }

    /// Every packet carries the credit, so any of them counts as a credit update.
    fn packet(&mut self, op: Op) -> Header {
        self.forwarded_told = self.forwarded;
        self.credit_wanted = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            kind: TYPE_STREAM,
            op: Ok(op),
            flags: 0,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
