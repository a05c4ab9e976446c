//! The sandbox's network: interfaces that the host has attached to the machine, set up as their counterparts on the
//! host are.

use crate::error::AgentError;
use crate::guest::slots;
use netlink::route::AddressFamily;
use netlink::route::RouteNetlinkMessage;
use netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink::route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink::route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink::route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink::{Change, Client};
use protocol::agent::{InterfaceAddress, Neighbour, NetworkInterface, Route};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// Takes the interfaces and sets them up. Blocks.
///
/// # Errors
/// The first that can't be; none of them is taken then.
pub fn setup(interfaces: &[NetworkInterface]) -> Result<(), AgentError> {
    let mut taken = Vec::new();
    for interface in interfaces {
        let device = slots::name(interface.device);
        let outcome = take(&device).and_then(|index| {
            taken.push(device.clone());
            set_up(index, interface)
        });
        if let Err(error) = outcome {
            for device in taken {
                let _ = slots::unbind(&device);
            }
            let what = format!("setting up the network interface {} ({device})", interface.name);
            return Err(AgentError::io(what, error));
        }
    }
    Ok(())
}

/// Has the driver take a device; gives the index of the interface that it has become.
fn take(device: &str) -> io::Result<u32> {
    let place = slots::bind(device)?;
    let index = slots::found(&place, "net").and_then(|net| {
        let text = fs::read_to_string(net.join("ifindex"))?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    });
    index.inspect_err(|_| drop(slots::unbind(device)))
}

fn set_up(index: u32, interface: &NetworkInterface) -> io::Result<()> {
    let mut client = Client::new()?;
    for (what, how) in messages(index, interface)? {
        client.change(what, how)?;
    }
    Ok(())
}

/// What makes an interface that is down into `interface`, in order.
fn messages(
    index: u32,
    interface: &NetworkInterface,
) -> io::Result<Vec<(RouteNetlinkMessage, Change)>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut named = link.clone();
    named.attributes = vec![
        LinkAttribute::IfName(interface.name.clone()),
        LinkAttribute::Address(interface.mac.clone()),
        LinkAttribute::Mtu(interface.mtu),
        // Its IPv6 addresses are the host's, all of them.
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    let mut all = vec![(RouteNetlinkMessage::SetLink(named), Change::Existing)];
    if !interface.up {
        return Ok(all);
    }
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    all.push((RouteNetlinkMessage::SetLink(link), Change::Existing));
    for address in &interface.addresses {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address)?);
        all.push((message, Change::Replace));
    }
    for neighbour in &interface.neighbours {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(index, neighbour)?);
        all.push((message, Change::Replace));
    }
    // A gateway is found by routes to networks on the link.
    let mut routes: Vec<&Route> = interface.routes.iter().collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    for route in routes {
        let message = RouteNetlinkMessage::NewRoute(route_message(index, route)?);
        all.push((message, Change::Replace));
    }
    Ok(all)
}

fn address_message(index: u32, address: &InterfaceAddress) -> io::Result<AddressMessage> {
    let local = ip(&address.local)?;
    let mut message = AddressMessage::default();
    message.header.family = family(local);
    message.header.prefix_len = address.prefix as u8;
    message.header.scope = (address.scope as u8).into();
    message.header.index = index;
    // The host has seen that nobody else has it.
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, local.is_ipv6());
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    let peer = some(&address.peer).map(ip).transpose()?;
    message.attributes = vec![
        AddressAttribute::Local(local),
        AddressAttribute::Address(peer.unwrap_or(local)),
        AddressAttribute::Flags(flags),
    ];
    if let Some(broadcast) = some(&address.broadcast) {
        let broadcast = <[u8; 4]>::try_from(broadcast).map_err(invalid)?;
        message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(broadcast)));
    }
    Ok(message)
}

fn neighbour_message(index: u32, neighbour: &Neighbour) -> io::Result<NeighbourMessage> {
    let address = ip(&neighbour.ip)?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.clone()),
    ];
    Ok(message)
}

fn route_message(index: u32, route: &Route) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if route.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.destination_prefix_length = route.prefix as u8;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Boot;
    header.scope = (route.scope as u8).into();
    header.kind = RouteType::Unicast;
    header.flags.set(RouteFlags::Onlink, route.onlink);
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Oif(index));
    if let Some(destination) = some(&route.destination) {
        attributes.push(RouteAttribute::Destination(ip(destination)?.into()));
    }
    if let Some(gateway) = some(&route.gateway) {
        attributes.push(RouteAttribute::Gateway(ip(gateway)?.into()));
    }
    if let Some(source) = some(&route.source) {
        attributes.push(RouteAttribute::PrefSource(ip(source)?.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu != 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Ok(message)
}

fn some(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

fn ip(bytes: &[u8]) -> io::Result<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from).map_err(invalid),
        _ => <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(invalid),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn invalid(_: std::array::TryFromSliceError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "an IP address has 4 or 16 bytes")
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
