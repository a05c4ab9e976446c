//! What is in a network namespace: from the kernel's messages to what a guest is told.

use super::error::NetworkError;
use super::tap;
use netlink::Client;
use netlink::route::AddressFamily;
use netlink::route::RouteNetlinkMessage;
use netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink::route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink::route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use protocol::agent::{InterfaceAddress, Neighbour, NetworkInterface, Route};
use std::net::IpAddr;

/// Interfaces that a module of the kernel's makes in every namespace, for what has no interface of its own.
const FALLBACKS: [&str; 9] =
    ["tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"];

/// Least MTU, IPv4's.
const MIN_MTU: u16 = 68;

/// An interface that is to be a guest's.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// In its namespace.
    pub index: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
    /// What the guest is told.
    pub interface: NetworkInterface,
}

/// Those of the thread's network namespace.
///
/// # Errors
/// The kernel does not tell, or one can't be a guest's.
pub fn interfaces(client: &mut Client) -> Result<Vec<Found>, NetworkError> {
    let mut list = |of| client.list(of).map_err(NetworkError::Look);
    let mut all = list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    all.extend(list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut of = RouteMessage::default();
        of.header.address_family = family;
        match list(RouteNetlinkMessage::GetRoute(of)) {
            // A host without IPv6.
            Err(NetworkError::Look(e)) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            routes => all.extend(routes?),
        }
    }
    all.extend(list(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?);
    from_messages(&all)
}

/// The pure part of [`interfaces`].
///
/// # Errors
/// [`NetworkError::NotEthernet`] or [`NetworkError::Mtu`].
pub fn from_messages(all: &[RouteNetlinkMessage]) -> Result<Vec<Found>, NetworkError> {
    let mut found = Vec::new();
    for message in all {
        if let RouteNetlinkMessage::NewLink(link) = message
            && let Some(one) = interface(link)?
        {
            found.push(one);
        }
    }
    for message in all {
        match message {
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(interface) = at(&mut found, message.header.index) {
                    interface.addresses.extend(address(message));
                }
            }
            RouteNetlinkMessage::NewRoute(message) => {
                if let Some((index, route)) = route(message)
                    && let Some(interface) = at(&mut found, index)
                {
                    interface.routes.push(route);
                }
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some(interface) = at(&mut found, message.header.ifindex) {
                    interface.neighbours.extend(neighbour(message));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn at(found: &mut [Found], index: u32) -> Option<&mut NetworkInterface> {
    found.iter_mut().find(|one| one.index == index).map(|one| &mut one.interface)
}

fn interface(link: &LinkMessage) -> Result<Option<Found>, NetworkError> {
    let (mut name, mut mac, mut mtu) = (String::new(), Vec::new(), 0);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name.clone_from(value),
            LinkAttribute::Address(value) => mac.clone_from(value),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    let flags = link.header.flags;
    let skipped = flags.contains(LinkFlags::Loopback)
        || FALLBACKS.contains(&name.as_str())
        || name.starts_with(tap::PREFIX);
    if skipped {
        return Ok(None);
    }
    let mac = match <[u8; 6]>::try_from(mac) {
        Ok(mac) if link.header.link_layer_type == LinkLayerType::Ether => mac,
        _ => return Err(NetworkError::NotEthernet { name }),
    };
    let fits = u16::try_from(mtu).ok().filter(|mtu| *mtu >= MIN_MTU);
    let mtu = fits.ok_or_else(|| NetworkError::Mtu { name: name.clone(), mtu })?;
    let interface = NetworkInterface {
        name,
        mac: mac.into(),
        mtu: mtu.into(),
        up: flags.contains(LinkFlags::Up),
        ..NetworkInterface::default()
    };
    Ok(Some(Found { index: link.header.index, mac, mtu, interface }))
}

/// `None`: another has it.
fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut local, mut remote, mut broadcast) = (None, None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(bytes(*ip)),
            AddressAttribute::Address(ip) => remote = Some(bytes(*ip)),
            AddressAttribute::Broadcast(ip) => broadcast = ip.octets().to_vec(),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    // IPv6 has a local address only where there is another end.
    let (local, peer) = match (local, remote) {
        (Some(local), Some(remote)) if local != remote => (local, remote),
        (Some(local), _) => (local, Vec::new()),
        (None, remote) => (remote?, Vec::new()),
    };
    Some(InterfaceAddress {
        local,
        prefix: header.prefix_len.into(),
        peer,
        broadcast,
        scope: u8::from(header.scope).into(),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        ..InterfaceAddress::default()
    })
}

/// With the index of its interface. `None`: of another table, one that the guest's kernel makes by itself, or one that
/// would be another without what the guest is not told.
fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut index = None;
    let mut route = Route {
        ipv6: header.address_family == AddressFamily::Inet6,
        prefix: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(value) => index = Some(*value),
            RouteAttribute::Destination(ip) => route.destination = route_bytes(ip)?,
            RouteAttribute::Gateway(ip) => route.gateway = route_bytes(ip)?,
            RouteAttribute::PrefSource(ip) => route.source = route_bytes(ip)?,
            RouteAttribute::Priority(value) => route.metric = *value,
            // A gateway of the other family, a tunnel, and a condition on where packets come from.
            RouteAttribute::Via(_) | RouteAttribute::EncapType(_) | RouteAttribute::Source(_) => {
                return None;
            }
            RouteAttribute::Metrics(all) => {
                let mtu = |metric: &RouteMetric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                };
                route.mtu = all.iter().find_map(mtu).unwrap_or_default();
            }
            _ => {}
        }
    }
    let kernels = matches!(
        header.protocol,
        RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    );
    let counts = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && header.kind == RouteType::Unicast
        && !header.flags.contains(RouteFlags::Cloned)
        && !kernels;
    Some((index.filter(|_| counts)?, route))
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut ip, mut mac) = (Vec::new(), Vec::new());
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = v4.octets().to_vec();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = v6.octets().to_vec();
            }
            NeighbourAttribute::LinkLayerAddress(value) => mac.clone_from(value),
            _ => {}
        }
    }
    let counts = message.header.state == NeighbourState::Permanent && !ip.is_empty();
    counts.then(|| Neighbour { ip, mac, ..Neighbour::default() })
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn route_bytes(ip: &RouteAddress) -> Option<Vec<u8>> {
    match ip {
        RouteAddress::Inet(v4) => Some(v4.octets().to_vec()),
        RouteAddress::Inet6(v6) => Some(v6.octets().to_vec()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
