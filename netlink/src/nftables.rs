//! nf_tables, of which only this is asked: whether there is any rule.

use crate::{connected, take};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::convert::Infallible;
use std::io;

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETRULE` of linux/netfilter.
const GET_RULE: u16 = (10 << 8) | 7;

/// `struct nfgenmsg`: rules of all families, in all tables.
const OF_ALL: [u8; 4] = [0; 4];

/// A message whose content is of no interest.
struct Any {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Any {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Any {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<Any> for NetlinkPayload<Any> {
    fn from(message: Any) -> Self {
        Self::InnerMessage(message)
    }
}

/// Whether the calling thread's network namespace holds any rule. Takes the right to administer it.
///
/// # Errors
/// The kernel's: one without nf_tables can't tell.
pub fn any_rule() -> io::Result<bool> {
    let socket = connected(NETLINK_NETFILTER)?;
    socket.send(&question(), 0)?;
    let mut rules = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let last = take::<Any>(&bytes, NUMBER, &mut rules)?;
        // What else there is to come goes with the socket.
        if last || !rules.is_empty() {
            return Ok(!rules.is_empty());
        }
    }
}

/// Of the one question.
const NUMBER: u32 = 1;

fn question() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = NUMBER;
    let all = Any { kind: GET_RULE, body: OF_ALL.to_vec() };
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(all));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOPNOTSUPP: i32 = 95;

    #[test]
    fn all_rules_of_all_tables_are_asked_for() {
        let asked = [20, 0, 0, 0, 7, 10, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(question(), asked);
    }

    #[test]
    fn a_rule_an_end_and_a_refusal_are_told_apart() {
        let answer = |datagram: &[u8]| {
            let mut rules = Vec::new();
            take::<Any>(datagram, NUMBER, &mut rules).map(|last| (last, rules.len()))
        };
        // NFT_MSG_NEWRULE with what there is of its head, twice; NLMSG_DONE; NLMSG_ERROR of EOPNOTSUPP.
        let rule = [20, 0, 0, 0, 6, 10, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1];
        let done = [20, 0, 0, 0, 3, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut refused = vec![36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        refused.extend((-EOPNOTSUPP).to_ne_bytes());
        refused.extend(&question()[..16]);
        assert_eq!(answer(&[rule, rule].concat()).unwrap(), (false, 2));
        assert_eq!(answer(&[rule, done].concat()).unwrap(), (true, 1));
        assert_eq!(answer(&done).unwrap(), (true, 0));
        assert_eq!(answer(&refused).unwrap_err().raw_os_error(), Some(EOPNOTSUPP));
        assert!(answer(&rule[..10]).is_err());
    }
}
