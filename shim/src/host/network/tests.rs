use super::testing::{Space, index, join};
use super::*;
use netlink::Change;
use netlink::route::AddressFamily;
use netlink::route::RouteNetlinkMessage;
use netlink::route::address::{AddressAttribute, AddressMessage};
use nix::sys::socket::{AddressFamily as SocketFamily, SockFlag, SockProtocol, SockType, socket};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

fn add_address(client: &mut Client, index: u32, ip: Ipv4Addr) {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip.into())];
    client.change(RouteNetlinkMessage::NewAddress(message), Change::Add).unwrap();
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
    let space = Space::new();
    space.add_pair("eth0", "kata-likepeer", 1400);
    let wire = space.within(|client| {
        let at = index(client, "eth0").unwrap();
        add_address(client, at, Ipv4Addr::new(10, 1, 2, 3));
        wire(index(client, "kata-likepeer").unwrap())
    });
    let (tapped, undo) = join(space.namespace(), None).unwrap();
    let [Tapped { interface, mac, mtu: 1400, tap, .. }] = &tapped[..] else { panic!("{tapped:?}") };
    assert_eq!((interface.name.as_str(), &interface.mac[..]), ("eth0", &mac[..]));
    assert!(interface.addresses.iter().any(|address| address.local == [10, 1, 2, 3]));
    assert!(interface.up);
    let of_tap = |line: &&str| {
        let name = line.split_whitespace().next_back().unwrap_or_default();
        !["lo", "eth0", "kata-likepeer"].contains(&name)
    };
    let text = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let addresses = space.within(|_| text());
    assert_eq!(addresses.lines().find(of_tap), None, "the tap speaks IPv6");
    { tap }.write_all(&[&[0; 12][..], &frame(1)].concat()).unwrap();
    assert!(hears(&wire, 0, &frame(1)), "what the guest sends does not leave");
    (&wire).write_all(&frame(2)).unwrap();
    assert!(hears(tap, 12, &frame(2)), "what arrives does not get to the guest");

    let again = join(space.namespace(), None).map(drop);
    assert!(matches!(&again, Err(NetworkError::Taken { name }) if name == "eth0"), "{again:?}");
    assert_eq!(undo.run().len(), 0);
    drop(tapped);
    assert_eq!(space.counts(), (3, 0), "lo and the pair are there, and nothing else");
    // And the next sandbox can have it.
    assert_eq!(join(space.namespace(), None).unwrap().0.len(), 1);
}

/// A datagram, as it is on the wire, without checksums of its own.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = 8 + text.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + length).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend([from.0.octets(), to.0.octets()].concat());
    let words = ip.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, length, 0] {
        ip.extend(word.to_be_bytes());
    }
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, text].concat()
}

#[test]
fn a_resolver_in_the_namespace_can_ask_others_beside_the_guest() {
    const OTHER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 2, 1), 53);
    let own = Ipv4Addr::new(10, 1, 2, 3);
    let space = Space::new();
    space.add_pair("eth0", "kata-likepeer", 1400);
    let wire = space.within(|client| {
        let at = index(client, "eth0").unwrap();
        add_address(client, at, own);
        wire(index(client, "kata-likepeer").unwrap())
    });
    let (tapped, _undo) = join(space.namespace(), None).unwrap();
    let [Tapped { mac, tap, .. }] = &tapped[..] else { panic!("{tapped:?}") };
    let at = space.within(|client| index(client, "eth0").unwrap());
    resolver::let_ask_others(space.namespace(), &[at]).unwrap();

    // It asks: first who has the address, which it is told, and the guest hears it as well.
    let resolver = space.within(|_| UdpSocket::bind((own, 0)).unwrap());
    resolver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = resolver.local_addr().unwrap().port();
    assert!(port >= 61440, "{port}");
    resolver.send_to(b"question", OTHER).unwrap();
    let addresses = [&mac[..], &own.octets(), &[0; 6], &OTHER.0.octets()].concat();
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    let asked = [&[0xff; 6][..], mac, &[8, 6], &arp, &addresses].concat();
    assert!(hears(&wire, 0, &asked), "nobody asks who has the address");
    let addresses = [&[2, 0, 0, 0, 0, 1][..], &OTHER.0.octets(), mac, &own.octets()].concat();
    let answered = [0, 1, 8, 0, 6, 4, 0, 2];
    let told = [mac, &[2, 0, 0, 0, 0, 1][..], &[8, 6], &answered, &addresses].concat();
    (&wire).write_all(&told).unwrap();
    assert!(hears(tap, 12, &told), "the guest does not hear who has the address");
    let end = Instant::now() + Duration::from_secs(10);
    let mut frame = [0; 2048];
    let went = loop {
        match (&wire).read(&mut frame) {
            Ok(length) if frame[..length].ends_with(b"question") => break true,
            Ok(_) => {}
            Err(_) if Instant::now() > end => break false,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(went, "the question does not leave");
    let to_it = |from, port, text| {
        let mut frame = datagram(from, (own, port), text);
        frame[..6].copy_from_slice(mac);
        frame
    };
    (&wire).write_all(&to_it(OTHER, port, b"answer")).unwrap();
    let (length, from) = resolver.recv_from(&mut frame).unwrap();
    assert_eq!((&frame[..length], from), (&b"answer"[..], OTHER.into()));

    // All else is the guest's, answers to what it asked itself among it.
    for frame in [to_it(OTHER, 60999, b"to the guest"), to_it((OTHER.0, 54), port, b"to the guest")]
    {
        (&wire).write_all(&frame).unwrap();
        assert!(hears(tap, 12, &frame), "{frame:?}");
    }
}

#[test]
fn what_is_known_of_a_sandbox_that_is_gone_is_enough_to_undo_it() {
    let (space, other) = (Space::new(), Space::new());
    for space in [&space, &other] {
        space.add_pair("eth0", "kata-likepeer", 1500);
    }
    let found = find(space.namespace()).unwrap();
    let (tapped, undo) = join(space.namespace(), None).unwrap();
    let joined = Joined::new(space.namespace(), &found);
    let (_tapped, _undo) = join(other.namespace(), None).unwrap();
    std::mem::forget(undo);
    drop(tapped);
    assert_eq!(space.counts(), (3, 1));
    // At its path is another by now: that is left alone.
    Joined { path: other.path(), ..joined.clone() }.leave().unwrap();
    Joined { path: "/no/such".into(), ..joined.clone() }.leave().unwrap();
    assert_eq!((space.counts(), other.counts()), ((3, 1), (4, 2)));
    let json = serde_json::to_vec(&joined).unwrap();
    let joined: Joined = serde_json::from_slice(&json).unwrap();
    joined.leave().unwrap();
    assert_eq!(space.counts(), (3, 0));
    joined.leave().unwrap();
}

#[test]
fn what_fails_in_the_middle_leaves_nothing() {
    let space = Space::new();
    space.add_pair("eth0", "eth1", 1500);
    space.within(|client| {
        let second = index(client, "eth0").max(index(client, "eth1")).unwrap();
        redirect::open(client, second).unwrap();
    });
    assert!(matches!(join(space.namespace(), None), Err(NetworkError::Taken { .. })));
    assert_eq!(space.counts(), (3, 1));
}

#[test]
fn where_the_hosts_kernel_is_to_serve_it_and_can_not_an_interface_is_left_alone() {
    let space = Space::new();
    space.add_pair("eth0", "kata-likepeer", 1500);
    for device in ["/nonexistent/vhost-net", "/dev/null"] {
        let refused = join(space.namespace(), Some(device));
        assert!(matches!(refused, Err(NetworkError::NoVhost { .. })));
        assert_eq!(space.counts(), (3, 0));
    }
}

#[test]
fn an_empty_namespace_has_nothing_to_join() {
    let (tapped, _) = join(Space::new().namespace(), None).unwrap();
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
