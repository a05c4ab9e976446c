use super::*;
use netlink::route::link::InfoKind;
use netlink::route::link::LinkInfo;
use nix::sched::{CloneFlags, unshare};

fn address(local: &[u8], prefix: u32) -> InterfaceAddress {
    InterfaceAddress { local: local.into(), prefix, ..InterfaceAddress::default() }
}

fn interface() -> NetworkInterface {
    let v6 = |last: u8| [&[0xfd, 1][..], &[0; 13], &[last]].concat();
    let route = Route { destination: vec![10, 9, 0, 0], prefix: 16, ..Route::default() };
    NetworkInterface {
        device: 5,
        name: "eth7".into(),
        mac: vec![2, 0, 0, 0, 0, 9],
        mtu: 1400,
        up: true,
        addresses: vec![address(&[10, 1, 2, 3], 24), address(&v6(3), 64)],
        routes: vec![
            Route { gateway: vec![10, 1, 2, 1], metric: 7, mtu: 1300, ..Route::default() },
            Route { ipv6: true, gateway: v6(1), ..Route::default() },
            // By a gateway that is not on the link by its address.
            Route { gateway: vec![169, 254, 1, 1], ..route.clone() },
            Route {
                destination: vec![169, 254, 1, 1],
                prefix: 32,
                scope: 253,
                source: vec![10, 1, 2, 3],
                ..Route::default()
            },
        ],
        neighbours: vec![Neighbour {
            ip: vec![169, 254, 1, 1],
            mac: vec![2, 0, 0, 0, 0, 1],
            ..Neighbour::default()
        }],
        ..NetworkInterface::default()
    }
}

/// Runs `test` on a thread with a network namespace of its own and an interface, whose index it gets.
fn with_interface(test: impl FnOnce(&mut Client, u32) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut client = Client::new().unwrap();
        let mut link = LinkMessage::default();
        link.header.index = 70;
        link.attributes = vec![
            LinkAttribute::IfName("first".into()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        client.change(RouteNetlinkMessage::NewLink(link), Change::Add).unwrap();
        test(&mut client, 70);
    });
    thread.join().unwrap();
}

fn routes(client: &mut Client, family: AddressFamily) -> Vec<RouteMessage> {
    let mut asked = RouteMessage::default();
    asked.header.address_family = family;
    let answers = client.list(RouteNetlinkMessage::GetRoute(asked)).unwrap();
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    routes.filter(|r| r.header.table == RouteHeader::RT_TABLE_MAIN).collect()
}

#[test]
fn the_kernel_takes_all_that_an_interface_may_have() {
    with_interface(|client, index| {
        set_up(index, &interface()).unwrap();
        let links = client.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let link = links.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) if link.header.index == index => Some(link),
            _ => None,
        });
        let link = link.unwrap();
        for expected in [
            LinkAttribute::IfName("eth7".into()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
        ] {
            assert!(link.attributes.contains(&expected), "{expected:?}");
        }
        assert!(link.header.flags.contains(LinkFlags::Up));
        let addresses = client.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let addresses: Vec<AddressMessage> = addresses
            .unwrap()
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(a) if a.header.index == index => Some(a),
                _ => None,
            })
            .collect();
        // No link-local one that nobody asked for, and none that is still tried.
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        let four = routes(client, AddressFamily::Inet);
        let by = |routes: &[RouteMessage], attribute: RouteAttribute| {
            routes.iter().filter(|route| route.attributes.contains(&attribute)).count()
        };
        assert_eq!(four.len(), 4, "{four:?}");
        assert_eq!(by(&four, RouteAttribute::Priority(7)), 1);
        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        assert_eq!(by(&four, RouteAttribute::Gateway(gateway.into())), 1);
        let six = routes(client, AddressFamily::Inet6);
        let is_default = |route: &&RouteMessage| route.header.destination_prefix_length == 0;
        assert_eq!(six.iter().filter(is_default).count(), 1, "{six:?}");
        let neighbours =
            client.list(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).unwrap();
        let permanent = neighbours.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(n) => n.header.state == NeighbourState::Permanent,
            _ => false,
        });
        assert!(permanent, "{neighbours:?}");
    });
}

#[test]
fn one_that_is_down_stays_so() {
    with_interface(|client, index| {
        set_up(index, &NetworkInterface { up: false, ..interface() }).unwrap();
        assert!(routes(client, AddressFamily::Inet).is_empty());
    });
}

#[test]
fn one_that_is_not_there_is_named() {
    let interface = NetworkInterface { device: 4711, ..interface() };
    let error = setup(&[interface]).unwrap_err().to_string();
    assert!(error.contains("eth7") && error.contains("virtio-mmio.4711"), "{error}");
}

#[test]
fn what_is_no_address_is_refused() {
    for bad in [&[][..], &[1, 2, 3], &[0; 17]] {
        let interface = NetworkInterface { addresses: vec![address(bad, 8)], ..interface() };
        assert!(messages(1, &interface).is_err(), "{bad:?}");
    }
}
