//! What becomes of the network namespace that a container names.

use super::*;
use crate::host::network::testing::{Sleeper, Space};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Instant;

impl Fixture {
    fn in_namespace(&self, id: &str, path: &Path) -> NewContainer {
        let mut new = self.container(id, "sh");
        let mut spec = serde_json::to_value(&new.spec).unwrap();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(serde_json::json!({"type": "network", "path": path}));
        new.spec = serde_json::from_value(spec).unwrap();
        new
    }

    fn names(&self) -> Vec<(String, u32)> {
        let interfaces = self.guest.interfaces.lock().unwrap();
        interfaces.iter().map(|interface| (interface.name.clone(), interface.device)).collect()
    }
}

fn with_interface(name: &str) -> Space {
    let space = Space::new();
    space.add_pair(name, "kata-likepeer", 1500);
    space
}

/// A pod, and its network namespace, which has an interface and a loopback.
async fn pod() -> (Fixture, Space) {
    let space = with_interface("eth0");
    space.loopback_up();
    let network = Some(space.path());
    (fixture_of(Some(PodSpec { network, ..PodSpec::default() })).await, space)
}

#[tokio::test]
async fn the_first_container_decides_for_all_and_the_end_undoes_it() {
    let f = fixture().await;
    let (space, other) = (with_interface("eth0"), with_interface("eth0"));
    f.sandbox.create(f.in_namespace("c", &space.path())).await.unwrap();
    f.sandbox.start("c").await.unwrap();
    f.sandbox.create(f.in_namespace("d", &space.path())).await.unwrap();
    f.sandbox.create(f.container("e", "sh")).await.unwrap();
    assert_eq!(f.names(), [("eth0".to_owned(), 4)]);
    // The pair, lo and the tap; what arrives at two of them is redirected.
    assert_eq!(space.counts(), (4, 2));
    let error = f.sandbox.create(f.in_namespace("x", &other.path())).await.unwrap_err();
    let (asked, has) = (other.path(), space.path());
    assert_eq!(
        error.to_string(),
        format!(
            "network namespace {}: containers of one sandbox share {}",
            asked.display(),
            has.display()
        )
    );
    assert_eq!(other.counts(), (3, 0));
    f.sandbox.stop().await;
    // A process that another test has just forked may hold the tap's descriptor as well.
    let late = Instant::now() + Duration::from_secs(10);
    while space.counts() != (3, 0) && Instant::now() < late {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(space.counts(), (3, 0));
}

#[tokio::test]
async fn what_is_not_there_at_the_create_is_at_the_start() {
    let f = fixture().await;
    let space = Space::new();
    f.sandbox.create(f.in_namespace("c", &space.path())).await.unwrap();
    assert!(f.names().is_empty());
    space.add_pair("eth0", "kata-likepeer", 1500);
    f.sandbox.start("c").await.unwrap();
    assert_eq!(f.names(), [("eth0".to_owned(), 4)]);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_guest_that_can_not_have_it_leaves_nothing_and_can_be_asked_again() {
    let f = fixture().await;
    let space = Space::new();
    for name in ["eth0", "bad0"] {
        space.add_pair(name, &format!("kata-like-{name}"), 1500);
    }
    let error = f.sandbox.create(f.in_namespace("c", &space.path())).await.unwrap_err();
    assert!(error.to_string().contains("bad0"), "{error}");
    assert_eq!(space.counts(), (5, 0));
    let other = with_interface("eth0");
    f.sandbox.create(f.in_namespace("c", &other.path())).await.unwrap();
    f.sandbox.stop().await;
}

#[tokio::test]
async fn what_can_not_be_a_guests_is_refused_by_name() {
    let f = fixture().await;
    let own = Path::new("/proc/self/ns/net");
    let error = f.sandbox.create(f.in_namespace("c", own)).await.unwrap_err();
    assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT);
    assert!(error.to_string().contains("the host's own network namespace"), "{error}");
    let sleeper = Sleeper::new();
    let error = f.sandbox.create(f.in_namespace("c", sleeper.path().as_ref())).await.unwrap_err();
    assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT);
    assert!(error.to_string().contains("is another's"), "{error}");
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    let space = with_interface("eth0");
    let error = f.sandbox.create(f.in_namespace("d", &space.path())).await.unwrap_err();
    assert!(error.to_string().contains("a loopback interface alone"), "{error}");
    assert_eq!(space.counts(), (3, 0));
}

#[tokio::test]
async fn what_connects_to_a_pods_localhost_reaches_the_guests_until_it_ends() {
    let (f, space) = pod().await;
    // Asked for again, it is as before.
    for _ in 0..2 {
        f.sandbox.set_up().await.unwrap();
    }
    let listening = space.within(|_| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let listening = listening.lines().filter(|line| line.split_whitespace().nth(3) == Some("0A"));
    assert_eq!(listening.count(), 1);
    // By threads that may block.
    let talk = move || {
        let connect = |to: &str| {
            let connection = space.within(|_| TcpStream::connect(to)).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection
        };
        for to in ["127.0.0.1:80", "[::1]:80"] {
            let mut connection = connect(to);
            connection.write_all(b"word").unwrap();
            let mut back = [0; 4];
            connection.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"word");
        }
        let mut nobody = connect("127.0.0.1:81");
        assert_eq!(nobody.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut open = connect("127.0.0.1:80");
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        open
    };
    let mut open = tokio::task::spawn_blocking(talk).await.unwrap();
    control::send(&f.vmm, &VmEvent::Exited { reason: ExitReason::Stopped }, &[]).unwrap();
    let ended = tokio::task::spawn_blocking(move || open.read(&mut [0])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_most_are_reset_and_one_that_ends_makes_room() {
    let (f, space) = pod().await;
    f.sandbox.set_up().await.unwrap();
    let talk = move || {
        let echoes = || -> std::io::Result<TcpStream> {
            let mut connection = space.within(|_| TcpStream::connect("127.0.0.1:80")).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection.write_all(b"x")?;
            connection.read_exact(&mut [0])?;
            Ok(connection)
        };
        let mut open: Vec<_> = (0..128).map(|_| echoes().unwrap()).collect();
        assert!(echoes().is_err(), "one too many");
        open.pop();
        let late = Instant::now() + Duration::from_secs(20);
        while echoes().is_err() {
            assert!(Instant::now() < late, "it makes no room");
        }
    };
    tokio::task::spawn_blocking(talk).await.unwrap();
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_port_forwarding_that_fails_once_is_there_when_it_is_asked_for_again() {
    let (f, space) = pod().await;
    // The only port that may be taken is taken.
    let of_space = |range: &str| {
        space.within(|_| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)).unwrap();
    };
    of_space("40000 40000");
    let taken = space.within(|_| std::net::TcpListener::bind("0.0.0.0:40000")).unwrap();
    f.sandbox.set_up().await.unwrap();
    drop(taken);
    of_space("32768 60999");
    let connect = || space.within(|_| TcpStream::connect("127.0.0.1:80"));
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    f.sandbox.set_up().await.unwrap();
    connect().unwrap();
    f.sandbox.stop().await;
}
