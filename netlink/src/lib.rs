//! rtnetlink(7), one question at a time: what the shim asks of a network namespace and the agent of its guest; and
//! whether there are rules of nf_tables.

pub mod nftables;

pub use netlink_packet_route as route;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// Most messages of one answer: more than any namespace has of interfaces, addresses or routes in earnest.
const MOST_ANSWERS: usize = 65_536;

/// What a change is to do with what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Make it; it is an error if it is there.
    Add,
    /// Make it, or put it in the place of what is there.
    Replace,
    /// Change or remove what is there.
    Existing,
}

impl Change {
    fn flags(self) -> u16 {
        match self {
            Self::Add => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Self::Existing => 0,
        }
    }
}

/// A socket to the kernel, for the network namespace that the thread was in which made it.
pub struct Client {
    socket: Socket,
    number: u32,
}

impl Client {
    /// For the calling thread's network namespace.
    ///
    /// # Errors
    /// No more descriptors can be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: connected(NETLINK_ROUTE)?, number: 0 })
    }

    /// Asks for a change and waits until it is made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, what: RouteNetlinkMessage, how: Change) -> io::Result<()> {
        self.ask(what, NLM_F_ACK | how.flags()).map(drop)
    }

    /// Asks for all of a kind.
    ///
    /// # Errors
    /// The kernel's, or an answer that can't be understood.
    pub fn list(&mut self, of: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(of, NLM_F_DUMP)
    }

    fn ask(
        &mut self,
        what: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.number += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.number;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(what));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            if take(&bytes, self.number, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// A socket to the kernel that speaks one of netlink's protocols.
fn connected(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Takes one datagram of an answer; whether it was the last.
fn take<M: NetlinkDeserializable>(
    datagram: &[u8],
    number: u32,
    answers: &mut Vec<M>,
) -> io::Result<bool> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(rest)
            .map_err(|e| invalid(format!("an answer of the kernel's: {e}")))?;
        let length = (message.header.length as usize).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        if message.header.sequence_number != number {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(answer) if answers.len() < MOST_ANSWERS => {
                answers.push(answer);
            }
            NetlinkPayload::InnerMessage(_) => {
                return Err(invalid(format!("more than {MOST_ANSWERS} of one kind")));
            }
            NetlinkPayload::Error(error) => {
                return if error.code.is_none() { Ok(true) } else { Err(error.to_io()) };
            }
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    #[test]
    fn the_kernel_lists_the_loopback_interface() {
        let mut client = Client::new().unwrap();
        for _ in 0..2 {
            let links = client.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
            let is_lo = |answer: &RouteNetlinkMessage| match answer {
                RouteNetlinkMessage::NewLink(link) => {
                    link.attributes.contains(&LinkAttribute::IfName("lo".into()))
                }
                _ => false,
            };
            assert!(links.iter().any(is_lo));
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let mut link = LinkMessage::default();
        link.header.index = u32::MAX >> 1;
        let change = RouteNetlinkMessage::SetLink(link);
        let error = Client::new().unwrap().change(change, Change::Existing).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }

    #[test]
    fn answers_to_others_and_broken_ones_are_told_apart() {
        let mut answers = Vec::<RouteNetlinkMessage>::new();
        // NLMSG_DONE to question 7, and one whose length lies.
        let mut done = vec![20, 0, 0, 0, 3, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(take(&done, 7, &mut answers).unwrap());
        assert!(!take(&done, 8, &mut answers).unwrap());
        done[0] = 200;
        assert!(take(&done, 7, &mut answers).is_err());
        assert!(take(&done[..10], 7, &mut answers).is_err());
        assert!(answers.is_empty());
    }
}
