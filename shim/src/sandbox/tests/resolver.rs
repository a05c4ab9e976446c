//! Whom a guest's questions to a resolver reach, and which guests may ask.

use super::*;
use crate::host::network::testing::Space;
use std::net::{TcpListener, UdpSocket};

/// Gives back what it is asked, with a word before it; ends with its namespace's test.
fn resolver_in(space: &Space) {
    let bound = space.within(|_| {
        (UdpSocket::bind("127.0.0.11:53").unwrap(), TcpListener::bind("127.0.0.11:53").unwrap())
    });
    let (datagrams, connections) = bound;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = datagrams.recv_from(&mut query) {
            let answer = [b"udp ", &query[..length]].concat();
            datagrams.send_to(&answer, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = connections.accept() {
            connection.write_all(b"tcp ").unwrap();
            let _ = std::io::copy(&mut connection.try_clone().unwrap(), &mut connection);
        }
    });
}

/// From which port on programs in the namespace get ports that they ask for.
fn first_port(space: &Space) -> u32 {
    let range = space.within(|_| std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"));
    range.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

impl Fixture {
    /// With a resolv.conf of this text, which it has from its start on.
    async fn start_with_resolver(&self, id: &str, space: &Space, text: &str) {
        let file = self.dir.path().join(format!("resolv-of-{id}"));
        std::fs::write(&file, "").unwrap();
        let mut new = self.container(id, "sh");
        let mut spec = serde_json::to_value(&new.spec).unwrap();
        let mount = serde_json::json!({
            "destination": "/etc/resolv.conf", "type": "bind", "source": file, "options": ["rbind"],
        });
        spec["mounts"] = serde_json::json!([mount]);
        let namespace = serde_json::json!({"type": "network", "path": space.path()});
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
        new.spec = serde_json::from_value(spec).unwrap();
        self.sandbox.create(new).await.unwrap();
        std::fs::write(&file, text).unwrap();
        self.sandbox.start(id).await.unwrap();
    }

    /// A stream of the guest's to the host's port, and what it then reads to its end.
    async fn ask(&self, said: &'static [u8]) -> Vec<u8> {
        let mut stream = self.guests_stream();
        let talk = move || {
            // The host may have closed it.
            let _ = stream.write_all(said);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            heard
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    fn guests_stream(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let event = VmEvent::Accepted { port: ports::RESOLVER };
        control::send(&self.vmm, &event, &[theirs.as_fd()]).unwrap();
        ours
    }

    fn times_told(&self) -> u64 {
        self.guest.resolvers.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_guest_whose_resolv_conf_leads_to_the_engines_resolver_can_ask_it() {
    let f = fixture().await;
    let space = Space::new();
    space.loopback_up();
    resolver_in(&space);
    f.start_with_resolver("c", &space, "search x\nnameserver 127.0.0.11\n").await;
    assert_eq!(f.times_told(), 1);
    assert_eq!(first_port(&space), 61440, "what others answer it would be the guest's");
    assert_eq!(f.ask(b"u\0\x03who").await, b"\0\x07udp who");
    assert_eq!(f.ask(b"twho").await, b"tcp who");
    // A message that is not whole, and no preamble.
    assert_eq!(f.ask(b"u\xff\xffwho").await, b"");
    assert_eq!(f.ask(b"x\0\x03who").await, b"");
    assert_eq!(f.ask(b"").await, b"");
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_guest_that_was_not_told_to_ask_is_not_answered() {
    let f = fixture().await;
    let space = Space::new();
    space.loopback_up();
    resolver_in(&space);
    f.start_with_resolver("c", &space, "nameserver 10.0.0.1\n").await;
    assert_eq!(f.times_told(), 0);
    assert!(first_port(&space) < 61440);
    assert_eq!(f.ask(b"u\0\x03who").await, b"");
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_guest_that_asks_too_much_at_once_is_closed_and_can_ask_again_later() {
    let f = fixture().await;
    let space = Space::new();
    space.loopback_up();
    resolver_in(&space);
    f.start_with_resolver("c", &space, "nameserver 127.0.0.11\n").await;
    let mut held: Vec<_> = (0..32).map(|_| f.guests_stream()).collect();
    // One that says nothing has its place.
    assert_eq!(f.ask(b"u\0\x03who").await, b"");
    held.clear();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while f.ask(b"u\0\x03who").await != b"\0\x07udp who" {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    f.sandbox.stop().await;
}
