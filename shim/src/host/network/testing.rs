//! Network namespaces for tests, without names: each goes with the test.

use super::{Namespace, NetworkError, Tapped, redirect};
use crate::host::undo::Undo;
use netlink::route::RouteNetlinkMessage;
use netlink::route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink::{Change, Client};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

/// A new network namespace.
pub struct Space {
    file: File,
    namespace: Arc<Namespace>,
}

impl Space {
    /// With a loopback interface alone.
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let file = file.join().unwrap();
        let namespace = Arc::new(Namespace::open(&path(&file)).unwrap());
        Self { file, namespace }
    }

    /// Where it can be found.
    pub fn path(&self) -> PathBuf {
        path(&self.file)
    }

    /// The same.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Does `work` in it.
    pub fn within<T: Send>(&self, work: impl FnOnce(&mut Client) -> T + Send) -> T {
        self.namespace.within(|| work(&mut Client::new().unwrap())).unwrap()
    }

    /// Makes a pair of interfaces, both up. The second of them is not the guest's to have if it is named as our taps are.
    pub fn add_pair(&self, name: &str, peer: &str, mtu: u32) {
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
        self.within(|client| {
            client.change(RouteNetlinkMessage::NewLink(link), Change::Add).unwrap();
            for name in [name, peer] {
                up(client, name);
            }
        });
    }

    /// Brings its loopback interface up.
    pub fn loopback_up(&self) {
        self.within(|client| up(client, "lo"));
    }

    /// How many interfaces it has, and how many of them have an ingress qdisc.
    pub fn counts(&self) -> (usize, usize) {
        self.within(|client| (links(client).len(), redirect::opened(client).unwrap().len()))
    }
}

/// Joins all interfaces that there are.
pub fn join(
    namespace: &Arc<Namespace>,
    vhost_net: Option<&str>,
) -> Result<(Vec<Tapped>, Undo), NetworkError> {
    super::join(namespace, super::find(namespace)?, vhost_net)
}

/// A process in a network namespace of its own.
pub struct Sleeper(Child);

impl Sleeper {
    /// It sleeps until it is dropped.
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
        let sleeper = Self(child);
        // It is in there when it has become what it runs.
        let comm = format!("/proc/{}/comm", sleeper.0.id());
        while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
            std::thread::sleep(Duration::from_millis(1));
        }
        sleeper
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Where its namespace can be found.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn up(client: &mut Client, name: &str) {
    let mut up = LinkMessage::default();
    up.header.index = index(client, name).unwrap();
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    client.change(RouteNetlinkMessage::SetLink(up), Change::Existing).unwrap();
}

fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Of an interface, by its name.
pub fn index(client: &mut Client, name: &str) -> Option<u32> {
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
