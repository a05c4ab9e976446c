//! The network of a sandbox on the host: each interface of a network namespace is joined to a tap, which the guest is
//! given in its place.
//!
//! What arrives at the interface is redirected to the tap before the namespace's own kernel sees it, and what the guest
//! sends leaves by the interface: so the guest has its MAC and addresses, and nothing else in the namespace changes. Answers
//! to ARP both get, and where an engine's resolver lives in the namespace it gets what other resolvers answer it.

mod devices;
mod error;
mod forward;
mod namespace;
pub mod probe;
mod redirect;
pub mod resolver;
mod scan;
mod sk_lookup;
mod tap;
mod tenant;
#[cfg(test)]
pub mod testing;
mod vhost;

pub use devices::{NetDevice, take};
pub use error::NetworkError;
pub use forward::{Localhost, listen};
pub use namespace::Namespace;
pub use scan::Found;
pub use tenant::refuse_anothers;
pub use vhost::DEVICE as VHOST_NET;

use crate::host::undo::Undo;
use netlink::Client;
use protocol::agent::NetworkInterface;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// An interface that a guest may be given.
#[derive(Debug)]
pub struct Tapped {
    /// What the guest is told of it, but for its device.
    pub interface: NetworkInterface,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
    /// Of the guest's frames; non-blocking, with virtio headers of 12 bytes. It goes with its last descriptor.
    pub tap: File,
    /// An open `/dev/vhost-net`, where the host's kernel is to serve it.
    pub vhost: Option<File>,
}

/// What is to be given back of a namespace when the one who joined it is gone; the taps went with the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    path: PathBuf,
    /// Of the namespace: at its path may be another by now.
    identity: (u64, u64),
    interfaces: Vec<u32>,
}

impl Joined {
    /// These of the namespace's interfaces.
    pub fn new(namespace: &Namespace, found: &[Found]) -> Self {
        Self {
            path: namespace.path().to_owned(),
            identity: namespace.identity(),
            interfaces: found.iter().map(|found| found.index).collect(),
        }
    }

    /// Ends the redirection, if the namespace is still there. Blocks.
    ///
    /// # Errors
    /// The system's; what can be given back is.
    pub fn leave(&self) -> io::Result<()> {
        let Some(namespace) = Namespace::again(&self.path, self.identity) else { return Ok(()) };
        let close = || {
            let mut client = Client::new()?;
            let all = self.interfaces.iter().map(|index| redirect::close(&mut client, *index));
            all.fold(Ok(()), io::Result::and)
        };
        namespace.within(close).map_err(io::Error::other)?
    }
}

/// Says so in the log if packet filters of `namespace` are there, a service mesh's for one: what is redirected passes them
/// by. A kernel that can't tell has none.
fn warn_of_filters(namespace: &Namespace) {
    match namespace.within(netlink::nftables::any_rule) {
        Ok(Ok(true)) => {
            let path = namespace.path().display();
            tracing::warn!(
                "network namespace {path} holds nftables rules: they don't hold for what the guest sends and receives"
            );
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => tracing::debug!("no nftables rules to be seen: {error}"),
        Err(error) => tracing::debug!("no nftables rules to be seen: {error}"),
    }
}

/// Every interface of `namespace` that is neither a loopback nor one that the kernel makes by itself: those that
/// [`join`] joins. Blocks.
///
/// # Errors
/// One can't be a guest's, or is somebody's already.
pub fn find(namespace: &Namespace) -> Result<Vec<Found>, NetworkError> {
    namespace.within(|| {
        let mut client = client()?;
        let found = scan::interfaces(&mut client)?;
        let opened = redirect::opened(&mut client).map_err(NetworkError::Look)?;
        match found.iter().find(|found| opened.contains(&found.index)) {
            Some(taken) => Err(NetworkError::Taken { name: taken.interface.name.clone() }),
            None => Ok(found),
        }
    })?
}

/// Joins these interfaces of `namespace`; where the host's kernel is to serve them, by the device at `vhost_net`. The
/// second undoes it. Blocks.
///
/// # Errors
/// The first that can't be; nothing is changed then.
pub fn join(
    namespace: &Arc<Namespace>,
    found: Vec<Found>,
    vhost_net: Option<&str>,
) -> Result<(Vec<Tapped>, Undo), NetworkError> {
    let mut undo = Undo::new();
    let mut tapped = Vec::new();
    for found in found {
        let Found { index, mac, mtu, interface } = found;
        let name = interface.name.clone();
        let vhost = vhost_net.map(|device| vhost::open(device.as_ref())).transpose()?;
        let made = namespace.within(|| {
            let mut client = client()?;
            let (tap, tap_index) = tap::make(&mut client, u32::from(mtu))
                .map_err(NetworkError::interface(&name, "make a tap beside it"))?;
            redirect::open(&mut client, index).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => NetworkError::Taken { name: name.clone() },
                _ => NetworkError::interface(&name, "see what arrives at it")(e),
            })?;
            let joined = redirect::open(&mut client, tap_index)
                .and_then(|()| redirect::redirect(&mut client, index, tap_index))
                .and_then(|()| redirect::share_neighbours(&mut client, index, tap_index))
                .and_then(|()| redirect::redirect(&mut client, tap_index, index));
            joined.map_err(|error| {
                let _ = redirect::close(&mut client, index);
                NetworkError::interface(&name, "redirect what arrives at it")(error)
            })?;
            Ok(tap)
        });
        let tap = made??;
        let at = namespace.clone();
        undo.push(format!("give network interface {name} back"), move || {
            at.within(|| redirect::close(&mut Client::new()?, index)).map_err(io::Error::other)?
        });
        tapped.push(Tapped { interface, mac, mtu, tap, vhost });
    }
    if !tapped.is_empty() {
        warn_of_filters(namespace);
    }
    Ok((tapped, undo))
}

fn client() -> Result<Client, NetworkError> {
    Client::new().map_err(NetworkError::Look)
}

#[cfg(test)]
mod tests;
