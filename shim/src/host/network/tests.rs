use super::*;
use netlink::Change;
use netlink::route::RouteNetlinkMessage;
use netlink::route::address::{AddressAttribute, AddressMessage};
use netlink::route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink::route::tc::TcMessage;
use netlink::route::{AddressFamily, tc::TcAttribute};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily as SocketFamily, SockFlag, SockProtocol, SockType, socket};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// A new network namespace, without a name.
fn namespace() -> Arc<Namespace> {
    let file = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let file = file.join().unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Arc::new(Namespace::open(Path::new(&path)).unwrap())
}

fn index(client: &mut Client, name: &str) -> Option<u32> {
    links(client).into_iter().find_map(|link| {
        let named = link.attributes.contains(&LinkAttribute::IfName(name.into()));
        named.then_some(link.header.index)
    })
}

fn links(client: &mut Client) -> Vec<LinkMessage> {
    let links = client.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
    let links = links.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    links.collect()
}

/// A pair of interfaces, both up, of which only the second is not the guest's to have: it is renamed as our taps are.
fn make_pair(client: &mut Client, name: &str, peer: &str, mtu: u32) {
    let named = |name: &str| {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Mtu(mtu)];
        link
    };
    let mut link = named(name);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(peer)))),
    ]));
    client.change(RouteNetlinkMessage::NewLink(link), Change::Add).unwrap();
    for name in [name, peer] {
        let mut up = LinkMessage::default();
        up.header.index = index(client, name).unwrap();
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        client.change(RouteNetlinkMessage::SetLink(up), Change::Existing).unwrap();
    }
}

fn add_address(client: &mut Client, index: u32, ip: Ipv4Addr) {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip.into())];
    client.change(RouteNetlinkMessage::NewAddress(message), Change::Add).unwrap();
}

/// Which interfaces have an ingress qdisc.
fn redirected(client: &mut Client) -> Vec<i32> {
    let all = client.list(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())).unwrap();
    let ingress = all.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => qdisc
            .attributes
            .contains(&TcAttribute::Kind("ingress".into()))
            .then_some(qdisc.header.index),
        _ => None,
    });
    ingress.collect()
}

/// A socket that sends and hears whole frames at an interface.
fn wire(index: u32) -> File {
    let flags = SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd =
        socket(SocketFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
    // SAFETY: sockaddr_ll is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address lives for the call and has that length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0);
    socket.into()
}

/// The next frame that is `expected`, behind so many bytes; others, as the kernel's own, are let go by.
fn hears(mut from: &File, skip: usize, expected: &[u8]) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    let mut frame = [0; 2048];
    while Instant::now() < end {
        match from.read(&mut frame) {
            Ok(len) if frame.get(skip..len) == Some(expected) => return true,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

fn frame(last: u8) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[last; 60]].concat()
}

#[test]
fn frames_go_both_ways_between_an_interface_and_its_tap_and_all_is_undone() {
    let namespace = namespace();
    let peer = namespace.within(|| {
        let mut client = Client::new().unwrap();
        make_pair(&mut client, "eth0", "kata-likepeer", 1400);
        let at = index(&mut client, "eth0").unwrap();
        add_address(&mut client, at, Ipv4Addr::new(10, 1, 2, 3));
        index(&mut client, "kata-likepeer").unwrap()
    });
    let peer = peer.unwrap();
    let (tapped, undo) = join(&namespace).unwrap();
    let [Tapped { interface, mac, mtu: 1400, tap }] = &tapped[..] else { panic!("{tapped:?}") };
    assert_eq!((interface.name.as_str(), &interface.mac[..]), ("eth0", &mac[..]));
    assert!(interface.addresses.iter().any(|address| address.local == [10, 1, 2, 3]));
    assert!(interface.up);
    let wire = namespace.within(|| wire(peer)).unwrap();
    { tap }.write_all(&[&[0; 12][..], &frame(1)].concat()).unwrap();
    assert!(hears(&wire, 0, &frame(1)), "what the guest sends does not leave");
    (&wire).write_all(&frame(2)).unwrap();
    assert!(hears(tap, 12, &frame(2)), "what arrives does not get to the guest");

    let again = join(&namespace).map(drop);
    assert!(matches!(&again, Err(NetworkError::Taken { name }) if name == "eth0"), "{again:?}");
    assert_eq!(undo.run().len(), 0);
    drop(tapped);
    let (left, redirected) = namespace
        .within(|| {
            let mut client = Client::new().unwrap();
            (links(&mut client).len(), redirected(&mut client))
        })
        .unwrap();
    assert_eq!((left, redirected), (3, vec![]), "lo and the pair are there, and nothing else");
    // And the next sandbox can have it.
    assert_eq!(join(&namespace).unwrap().0.len(), 1);
}

#[test]
fn what_fails_in_the_middle_leaves_nothing() {
    let namespace = namespace();
    let left = namespace.within(|| {
        let mut client = Client::new().unwrap();
        make_pair(&mut client, "eth0", "eth1", 1500);
        let second = index(&mut client, "eth0").unwrap().max(index(&mut client, "eth1").unwrap());
        redirect::open(&mut client, second).unwrap();
        second
    });
    let left = left.unwrap();
    assert!(matches!(join(&namespace), Err(NetworkError::Taken { .. })));
    let (links, redirected) = namespace
        .within(|| {
            let mut client = Client::new().unwrap();
            (links(&mut client).len(), redirected(&mut client))
        })
        .unwrap();
    assert_eq!((links, redirected), (3, vec![left as i32]));
}

#[test]
fn an_empty_namespace_has_nothing_to_join() {
    let (tapped, _) = join(&namespace()).unwrap();
    assert!(tapped.is_empty(), "{tapped:?}");
}

#[test]
fn what_is_no_namespace_or_the_hosts_own_is_named() {
    for (path, said) in [
        ("/no/such", "network namespace /no/such"),
        ("/proc/self/ns/uts", "no network namespace"),
        ("/dev/null", "network namespace /dev/null"),
        ("/proc/self/ns/net", "/proc/self/ns/net is the host's own network namespace"),
    ] {
        let error = Namespace::open(Path::new(path)).unwrap_err();
        let error = crate::error::Error::from(error).chain();
        assert!(error.contains(said), "{error}");
    }
}
