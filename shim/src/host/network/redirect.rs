//! What arrives at one interface leaves by another: tc(8)'s ingress qdisc, a filter that takes everything, and the
//! action mirred.

use netlink::route::RouteNetlinkMessage;
use netlink::route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use netlink::{Change, Client};
use std::io;

/// The ingress qdisc, as the parent of filters.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// Of any protocol (`ETH_P_ALL`).
const ANY_PROTOCOL: u16 = 3;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

/// The bits that ports from 61440 on have all of: guests take ports above 60999 only where they are told to.
pub const OWN_PORTS: u32 = 0xf000;

/// Lets filters see what arrives at an interface.
///
/// # Errors
/// The kernel's; it exists already.
pub fn open(client: &mut Client, index: u32) -> io::Result<()> {
    client.change(RouteNetlinkMessage::NewQueueDiscipline(qdisc(index)), Change::Add)
}

/// The interfaces of which filters see what arrives, whoever wanted that.
///
/// # Errors
/// The kernel's.
pub fn opened(client: &mut Client) -> io::Result<Vec<u32>> {
    let all = client.list(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let is_ingress = |kind: &TcAttribute| *kind == TcAttribute::Kind("ingress".to_owned());
    let opened = all.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            let index = u32::try_from(qdisc.header.index).ok()?;
            qdisc.attributes.iter().any(is_ingress).then_some(index)
        }
        _ => None,
    });
    Ok(opened.collect())
}

/// The opposite of [`open`]: with the qdisc go its filters. That it or the interface is gone is no error.
///
/// # Errors
/// The kernel's.
pub fn close(client: &mut Client, index: u32) -> io::Result<()> {
    let removed = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index));
    match client.change(removed, Change::Existing) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => {
            Ok(())
        }
        outcome => outcome,
    }
}

/// Has all that arrives at an interface leave by another.
///
/// # Errors
/// The kernel's.
pub fn redirect(client: &mut Client, from: u32, to: u32) -> io::Result<()> {
    let action = mirred(TcMirrorActionType::EgressRedir, to, TcActionType::Stolen);
    // One key that matches any word.
    add(client, from, Class { priority: 0, protocol: ANY_PROTOCOL }, &[(0, 0, 0)], Some(action))
}

/// Has answers to ARP that arrive at an interface leave by another as well: its own kernel goes on to learn its neighbours.
///
/// # Errors
/// The kernel's.
pub fn share_neighbours(client: &mut Client, from: u32, to: u32) -> io::Result<()> {
    let action = mirred(TcMirrorActionType::EgressMirror, to, TcActionType::Ok);
    // Lengths of addresses, and what it is.
    let key = (4, 0x0604_0002, 0xffff_ffff);
    add(client, from, Class { priority: 1, protocol: ARP }, &[key], Some(action))
}

/// Leaves to the interface's own kernel what comes by IPv4 from port 53 to a port from 61440 on, unless it is a fragment
/// or has options.
///
/// # Errors
/// The kernel's.
pub fn keep_answers_of_resolvers(client: &mut Client, index: u32) -> io::Result<()> {
    for (priority, protocol) in [(2, libc::IPPROTO_UDP), (3, libc::IPPROTO_TCP)] {
        let keys = [
            (0, 0x4500_0000, 0xff00_0000),
            (4, 0, 0x3fff),
            (8, (protocol.cast_unsigned()) << 16, 0x00ff_0000),
            (20, 53 << 16 | OWN_PORTS, 0xffff_0000 | OWN_PORTS),
        ];
        add(client, index, Class { priority, protocol: IPV4 }, &keys, None)?;
    }
    Ok(())
}

/// Which frames a filter is asked about, and before which others; 0: after those that say it.
#[derive(Clone, Copy)]
struct Class {
    priority: u16,
    protocol: u16,
}

/// Adds a filter for frames that have these words: where each is in the header of the network layer, what it is, and which
/// of its bits count. Without an action they go on as if there were none.
fn add(
    client: &mut Client,
    index: u32,
    of: Class,
    words: &[(i32, u32, u32)],
    action: Option<TcAction>,
) -> io::Result<()> {
    let mut message = TcMessage::default();
    message.header.index = index as i32;
    message.header.parent = INGRESS;
    message.header.info = u32::from(of.priority) << 16 | u32::from(of.protocol.to_be());
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    let keys = words.iter().map(|&(at, value, mask)| {
        let mut key = TcU32Key::default();
        (key.off, key.val, key.mask) = (at, value.to_be(), mask.to_be());
        key
    });
    selector.keys = keys.collect();
    selector.nkeys = selector.keys.len() as u8;
    let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
    options.extend(action.map(|action| TcOption::U32(TcFilterU32Option::Action(vec![action]))));
    message.attributes =
        vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned()), TcAttribute::Options(options)];
    client.change(RouteNetlinkMessage::NewTrafficFilter(message), Change::Add)
}

/// What is to be done with a frame, and what then with the one that came.
fn mirred(how: TcMirrorActionType, to: u32, then: TcActionType) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = then;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = how;
    mirror.ifindex = to;
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(options),
    ];
    action
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index as i32;
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}
