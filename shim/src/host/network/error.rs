//! Why a namespace's interfaces can't be a guest's.

use std::io;
use std::path::PathBuf;

/// Why a sandbox can't have the network that it was asked to have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not there, or no network namespace.
    #[error("network namespace {}", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The host's own: a guest can't have the host's interfaces.
    #[error(
        "{} is the host's own network namespace, which a virtual machine can't share", path.display()
    )]
    Hosts {
        /// The path that led there.
        path: PathBuf,
    },
    /// Somebody else's: who lives there would lose the interfaces.
    #[error(
        "network namespace {} is another's: process {pid} ({name}) is in it, and would lose the interfaces to the \
         virtual machine", path.display()
    )]
    Anothers {
        /// The path that led there.
        path: PathBuf,
        /// A process that is in it.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A thread can't enter the namespace.
    #[error("enter the network namespace")]
    Enter(#[source] io::Error),
    /// The kernel does not tell what is in it.
    #[error("look at what is in the network namespace")]
    Look(#[source] io::Error),
    /// Nobody can hear connections to its localhost.
    #[error("listen at localhost in the network namespace")]
    Localhost(#[source] io::Error),
    /// There is no socket to ask the engine's resolver with.
    #[error("ask the resolver in the network namespace")]
    Resolver(#[source] io::Error),
    /// One interface.
    #[error("network interface {name}: {what}")]
    Interface {
        /// Its name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The host's kernel is to serve interfaces and can't.
    #[error(
        "open {}, as network.vhost_net of the configuration wants (`modprobe vhost_net`, or leave the setting out)",
        path.display()
    )]
    NoVhost {
        /// Where it should be.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It has an ingress qdisc: another sandbox's, or one whose effect the redirection would end.
    #[error("network interface {name}: what arrives at it is redirected already")]
    Taken {
        /// Its name.
        name: String,
    },
    /// Only Ethernet's frames can be given to a guest.
    #[error("network interface {name} is no Ethernet: a virtual machine can't be given it")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// An MTU that no virtio-net device has.
    #[error("network interface {name} has an MTU of {mtu}: a virtual machine's has 68 to 65535")]
    Mtu {
        /// Its name.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
}

impl NetworkError {
    /// For `map_err` of a call about one interface.
    pub fn interface(name: &str, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Interface { name, what, source }
    }
}
