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

/// Lets filters see what arrives at an interface.
///
/// # Errors
/// The kernel's; it exists already.
pub fn open(client: &mut Client, index: u32) -> io::Result<()> {
    client.change(RouteNetlinkMessage::NewQueueDiscipline(qdisc(index)), Change::Add)
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
    let mut message = TcMessage::default();
    message.header.index = from as i32;
    message.header.parent = INGRESS;
    message.header.info = u32::from(ANY_PROTOCOL.to_be());
    // One key that matches any word.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    client.change(RouteNetlinkMessage::NewTrafficFilter(message), Change::Add)
}

fn qdisc(index: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index as i32;
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}
