//! Network devices of the host's that a container asks for (`linux.netDevices`): each moves into its sandbox's network
//! namespace, under the name that it is to have there. The kernel leaves a device its MAC and MTU, and takes its
//! addresses: those that are its own everywhere are given back to it.

use super::client;
use super::error::NetworkError;
use super::namespace::Namespace;
use netlink::route::RouteNetlinkMessage;
use netlink::route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink::route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink::{Change, Client};
use std::io;
use std::os::fd::AsRawFd as _;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    /// What the host calls it.
    pub name: String,
    /// What the container is to call it.
    pub becomes: String,
}

/// Moves them from the thread's network namespace, and brings them up. Blocks.
///
/// # Errors
/// The first that can't be; those before it are the namespace's, and go back with it as far as the kernel sees to that.
pub fn take(devices: &[NetDevice], into: &Namespace) -> Result<(), NetworkError> {
    devices.iter().try_for_each(|device| take_one(device, into))
}

fn take_one(device: &NetDevice, into: &Namespace) -> Result<(), NetworkError> {
    let NetDevice { name, becomes } = device;
    let failed = |what| NetworkError::interface(name, what);
    let mut host = client()?;
    let index = find(&mut host, name).and_then(|found| found.ok_or_else(gone));
    let index = index.map_err(failed("find it on the host"))?;
    // As long as it is up: some addresses go when it is brought down.
    let addresses = addresses(&mut host, index).map_err(failed("see its addresses"))?;
    // The kernel would say so only when it has moved.
    into.within(|| {
        match find(&mut client()?, becomes) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => Err(error),
        }
        .map_err(NetworkError::interface(becomes, "have the name for a device of the host's"))
    })??;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![
        LinkAttribute::NetNsFd(into.as_fd().as_raw_fd()),
        LinkAttribute::IfName(becomes.clone()),
    ];
    host.change(RouteNetlinkMessage::SetLink(link), Change::Existing)
        .map_err(failed("move it into the network namespace"))?;
    into.within(|| {
        let mut client = client()?;
        let settle = || {
            let index = find(&mut client, becomes)?.ok_or_else(gone)?;
            for mut address in addresses {
                address.header.index = index;
                client.change(RouteNetlinkMessage::NewAddress(address), Change::Replace)?;
            }
            let mut up = LinkMessage::default();
            up.header.index = index;
            up.header.flags = LinkFlags::Up;
            up.header.change_mask = LinkFlags::Up;
            client.change(RouteNetlinkMessage::SetLink(up), Change::Existing)
        };
        settle().map_err(failed("bring it up in the network namespace"))
    })?
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

/// The index of a link of the client's namespace.
fn find(client: &mut Client, name: &str) -> io::Result<Option<u32>> {
    let links = client.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => {
            let named = link.attributes.contains(&LinkAttribute::IfName(name.to_owned()));
            named.then_some(link.header.index)
        }
        _ => None,
    }))
}

/// The addresses of a link that it is to keep, to be added again: those that somebody has given it for good, and that
/// mean the same everywhere.
fn addresses(client: &mut Client, index: u32) -> io::Result<Vec<AddressMessage>> {
    let all = client.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let kept = all.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => kept(address, index),
        _ => None,
    });
    Ok(kept.collect())
}

fn kept(mut address: AddressMessage, of: u32) -> Option<AddressMessage> {
    let header = &mut address.header;
    let lasts = header.flags.contains(AddressHeaderFlags::Permanent);
    if header.index != of || !lasts || header.scope != AddressScope::Universe {
        return None;
    }
    header.flags = AddressHeaderFlags::empty();
    let of_prefix = address.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Flags(flags) => flags.contains(AddressFlags::Noprefixroute),
        _ => false,
    });
    // Not its label, which is after the name on the host.
    address.attributes.retain(|attribute| {
        use AddressAttribute::{Address, Broadcast, Local};
        matches!(attribute, Address(_) | Broadcast(_) | Local(_))
    });
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, of_prefix);
    address.attributes.push(AddressAttribute::Flags(flags));
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network::testing::{Space, index, join};
    use netlink::route::AddressFamily;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x55];

    /// A namespace with a device `eth7` that has a MAC, an MTU, and an address of each kind.
    fn host() -> Space {
        let space = Space::new();
        space.add_pair("eth7", "peer7", 1789);
        space.within(|client| {
            let at = index(client, "eth7").unwrap();
            let mut link = LinkMessage::default();
            link.header.index = at;
            link.attributes = vec![LinkAttribute::Address(MAC.to_vec())];
            client.change(RouteNetlinkMessage::SetLink(link), Change::Existing).unwrap();
            let v4 = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
            let v6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
            let (all, on_link) = (AddressScope::Universe, AddressScope::Link);
            for (ip, scope) in [(v4(7), all), (v4(9), on_link), (v6, all)] {
                let mut message = AddressMessage::default();
                let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                message.header.family = family;
                message.header.prefix_len = if ip.is_ipv4() { 32 } else { 128 };
                message.header.scope = scope;
                message.header.index = at;
                message.attributes = vec![AddressAttribute::Local(ip)];
                client.change(RouteNetlinkMessage::NewAddress(message), Change::Add).unwrap();
            }
        });
        space
    }

    fn device(name: &str, becomes: &str) -> [NetDevice; 1] {
        [NetDevice { name: name.into(), becomes: becomes.into() }]
    }

    #[test]
    fn a_device_moves_with_what_is_its_own_and_is_the_guests() {
        let (host, guests) = (host(), Space::new());
        host.within(|_| take(&device("eth7", "net0"), guests.namespace())).unwrap();
        assert_eq!(host.within(|client| index(client, "eth7")), None);
        let (tapped, _undo) = join(guests.namespace(), None).unwrap();
        let [one] = &tapped[..] else { panic!("{tapped:?}") };
        assert_eq!((one.interface.name.as_str(), one.mac, one.mtu), ("net0", MAC, 1789));
        assert!(one.interface.up);
        let has = |local: &[u8]| one.interface.addresses.iter().any(|a| a.local == local);
        assert!(has(&[192, 0, 2, 7]) && !has(&[192, 0, 2, 9]), "{:?}", one.interface);
        assert!(has(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).octets()), "{:?}", one.interface);
    }

    #[test]
    fn one_that_is_not_there_or_whose_name_is_taken_stays_where_it_is() {
        let (host, guests) = (host(), Space::new());
        guests.add_pair("net0", "net1", 1500);
        let error = host.within(|_| take(&device("eth8", "eth8"), guests.namespace())).unwrap_err();
        let error = crate::error::Error::from(error).chain();
        assert!(error.contains("network interface eth8: find it on the host"), "{error}");
        let error = host.within(|_| take(&device("eth7", "net0"), guests.namespace())).unwrap_err();
        assert!(error.to_string().contains("network interface net0"), "{error}");
        assert!(host.within(|client| index(client, "eth7")).is_some());
    }
}
