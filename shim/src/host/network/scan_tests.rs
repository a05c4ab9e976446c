use super::*;
use netlink::route::address::{AddressHeaderFlags, AddressScope};
use netlink::route::route::{RouteScope, RouteVia};
use std::net::{Ipv4Addr, Ipv6Addr};

const LINK: u32 = 3;

fn link(index: u32, name: &str, kind: LinkLayerType, mtu: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.link_layer_type = kind;
    link.header.flags = LinkFlags::Up;
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]),
        LinkAttribute::Mtu(mtu),
    ];
    RouteNetlinkMessage::NewLink(link)
}

fn eth0() -> RouteNetlinkMessage {
    link(LINK, "eth0", LinkLayerType::Ether, 1450)
}

fn only(all: &[RouteNetlinkMessage]) -> NetworkInterface {
    let mut found = from_messages(all).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0).interface
}

#[test]
fn interfaces_that_a_guest_has_itself_are_skipped_and_others_have_their_mac_and_mtu() {
    let mut lo = LinkMessage::default();
    lo.header.flags = LinkFlags::Loopback;
    lo.header.link_layer_type = LinkLayerType::Loopback;
    let mut all = vec![
        RouteNetlinkMessage::NewLink(lo),
        link(LINK, "eth0", LinkLayerType::Ether, 65_535),
        link(20, "kata-like0", LinkLayerType::Ether, 1500),
    ];
    let kinds = [LinkLayerType::Tunnel, LinkLayerType::Ether];
    all.extend(
        FALLBACKS.iter().zip(kinds.iter().cycle()).map(|(name, kind)| link(30, name, *kind, 1480)),
    );
    let found = from_messages(&all).unwrap();
    let expected = NetworkInterface {
        name: "eth0".into(),
        mac: vec![2, 0, 0, 0, 0, 3],
        mtu: 65_535,
        up: true,
        ..NetworkInterface::default()
    };
    let mac = [2, 0, 0, 0, 0, 3];
    assert_eq!(found, [Found { index: LINK, mac, mtu: 65_535, interface: expected }]);
}

#[test]
fn one_that_can_not_be_a_guests_is_named() {
    let error = from_messages(&[link(1, "wg0", LinkLayerType::None, 1420)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "network interface wg0 is no Ethernet: a virtual machine can't be given it"
    );
    for mtu in [0, 67, 65_536] {
        let error = from_messages(&[link(1, "big0", LinkLayerType::Ether, mtu)]).unwrap_err();
        assert!(error.to_string().starts_with("network interface big0 has an MTU of"), "{error}");
    }
}

fn with_address(
    prefix: u8,
    flags: u8,
    scope: AddressScope,
    attributes: Vec<AddressAttribute>,
) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = LINK;
    message.header.prefix_len = prefix;
    message.header.flags = AddressHeaderFlags::from_bits_retain(flags);
    message.header.scope = scope;
    message.attributes = attributes;
    RouteNetlinkMessage::NewAddress(message)
}

#[test]
fn addresses_are_those_of_the_interface() {
    let (four, six) = (Ipv4Addr::new(10, 0, 0, 7), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7));
    let end = Ipv4Addr::new(10, 0, 0, 8);
    let broadcast = Ipv4Addr::new(10, 0, 0, 255);
    let universe = AddressScope::Universe;
    let all = [
        eth0(),
        with_address(
            24,
            0,
            universe,
            vec![
                AddressAttribute::Address(four.into()),
                AddressAttribute::Local(four.into()),
                AddressAttribute::Broadcast(broadcast),
            ],
        ),
        with_address(
            32,
            0,
            universe,
            vec![
                AddressAttribute::Address(end.into()),
                AddressAttribute::Local(four.into()),
                AddressAttribute::Flags(AddressFlags::Noprefixroute),
            ],
        ),
        with_address(64, 0, AddressScope::Link, vec![AddressAttribute::Address(six.into())]),
        // Somebody else has it.
        with_address(64, 0x08, universe, vec![AddressAttribute::Address(six.into())]),
        with_address(64, 0, universe, vec![]),
    ];
    let plain = InterfaceAddress {
        local: four.octets().into(),
        prefix: 24,
        broadcast: broadcast.octets().into(),
        ..InterfaceAddress::default()
    };
    let pointed = InterfaceAddress {
        local: four.octets().into(),
        prefix: 32,
        peer: end.octets().into(),
        no_prefix_route: true,
        ..InterfaceAddress::default()
    };
    let six = InterfaceAddress {
        local: six.octets().into(),
        prefix: 64,
        scope: 253,
        ..InterfaceAddress::default()
    };
    assert_eq!(only(&all).addresses, [plain, pointed, six]);
}

fn with_route(change: impl FnOnce(&mut RouteMessage)) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Boot;
    message.attributes = vec![RouteAttribute::Oif(LINK)];
    change(&mut message);
    RouteNetlinkMessage::NewRoute(message)
}

#[test]
fn routes_are_those_that_somebody_made_in_the_main_table() {
    let gateway = Ipv4Addr::new(169, 254, 1, 1);
    let all = [
        eth0(),
        with_route(|r| {
            r.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
            r.attributes.extend([
                RouteAttribute::Gateway(gateway.into()),
                RouteAttribute::Priority(100),
                RouteAttribute::Metrics(vec![RouteMetric::Window(1), RouteMetric::Mtu(1300)]),
            ]);
        }),
        with_route(|r| {
            r.header.scope = RouteScope::Link;
            r.header.destination_prefix_length = 32;
            r.attributes.extend([
                RouteAttribute::Destination(gateway.into()),
                RouteAttribute::PrefSource(Ipv4Addr::new(10, 0, 0, 7).into()),
            ]);
        }),
        with_route(|r| {
            r.header.address_family = AddressFamily::Inet6;
            r.attributes.push(RouteAttribute::Gateway(Ipv6Addr::LOCALHOST.into()));
        }),
        // The kernel's own, of other tables, of other kinds, and of no interface or another.
        with_route(|r| r.header.protocol = RouteProtocol::Kernel),
        with_route(|r| r.header.protocol = RouteProtocol::Ra),
        with_route(|r| r.header.flags = RouteFlags::Cloned),
        with_route(|r| r.header.table = 255),
        with_route(|r| r.attributes.push(RouteAttribute::Table(1000))),
        with_route(|r| r.header.kind = RouteType::BlackHole),
        with_route(|r| r.attributes.clear()),
        with_route(|r| r.attributes = vec![RouteAttribute::Oif(LINK + 1)]),
        // Without its gateway, or its condition, it would lead elsewhere.
        with_route(|r| {
            r.attributes.push(RouteAttribute::Via(RouteVia::Inet6(Ipv6Addr::LOCALHOST)));
        }),
        with_route(|r| {
            r.attributes.push(RouteAttribute::Source(Ipv4Addr::new(10, 0, 0, 0).into()));
        }),
    ];
    let default = Route {
        gateway: gateway.octets().into(),
        metric: 100,
        onlink: true,
        mtu: 1300,
        ..Route::default()
    };
    let to_gateway = Route {
        destination: gateway.octets().into(),
        prefix: 32,
        scope: 253,
        source: vec![10, 0, 0, 7],
        ..Route::default()
    };
    let six =
        Route { ipv6: true, gateway: Ipv6Addr::LOCALHOST.octets().into(), ..Route::default() };
    assert_eq!(only(&all).routes, [default, to_gateway, six]);
}

#[test]
fn neighbours_are_the_permanent_ones() {
    let neighbour = |state, address: Option<NeighbourAddress>| {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = LINK;
        message.header.state = state;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2; 6])];
        message.attributes.extend(address.map(NeighbourAttribute::Destination));
        RouteNetlinkMessage::NewNeighbour(message)
    };
    let address = || Some(NeighbourAddress::Inet(Ipv4Addr::new(169, 254, 1, 1)));
    let all = [
        eth0(),
        neighbour(NeighbourState::Permanent, address()),
        neighbour(NeighbourState::Reachable, address()),
        neighbour(NeighbourState::Noarp, address()),
        neighbour(NeighbourState::Permanent, None),
    ];
    let expected = Neighbour { ip: vec![169, 254, 1, 1], mac: vec![2; 6], ..Neighbour::default() };
    assert_eq!(only(&all).neighbours, [expected]);
}
