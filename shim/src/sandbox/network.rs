//! The network of a sandbox: the interfaces of the network namespace that its first container names are its guest's.

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::agent::Agent;
use crate::host::blocking::blocking;
use crate::host::network::{self, Joined, Namespace, NetDevice, Tapped};
use crate::host::persist::SandboxState;
use crate::host::undo::Undo;
use crate::oci::plan::shared;
use protocol::agent::NetworkInterface;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What the sandbox's network is.
#[derive(Debug, Default)]
pub(super) enum Network {
    /// There has been no container.
    #[default]
    Undecided,
    /// The guest's loopback interface.
    Loopback,
    /// The interfaces of a namespace.
    Namespace {
        /// Which.
        namespace: Arc<Namespace>,
        /// Which they are.
        interfaces: Vec<u32>,
    },
}

/// That of the VMM, in which nothing is but what an engine puts there after the create (`ctr run --cni`, Docker).
fn own(path: &Path) -> Network {
    match Namespace::open(path) {
        Ok(namespace) => {
            Network::Namespace { namespace: Arc::new(namespace), interfaces: Vec::new() }
        }
        Err(error) => {
            tracing::warn!("no network can be added: {}", Error::from(error).chain());
            Network::Loopback
        }
    }
}

async fn move_into(namespace: &Arc<Namespace>, devices: &[NetDevice]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let (into, devices) = (namespace.clone(), devices.to_owned());
    let work = move || Ok(network::take(&devices, &into)?);
    blocking("move network devices into", namespace.path(), work).await
}

impl Sandbox {
    /// Gives the guest the interfaces of the network namespace at `path`, which a container's spec names, once these
    /// devices of the host's are there as well; the first container of a sandbox decides for all.
    ///
    /// # Errors
    /// It is not the sandbox's, can't be one's, or the machine or the agent fails. Nothing is changed then, but that a
    /// device may have moved.
    pub(super) async fn join_network(
        &self,
        agent: &Agent,
        path: Option<&Path>,
        devices: &[NetDevice],
    ) -> Result<()> {
        let mut network = self.0.network.lock().await;
        let Some(path) = path else {
            if matches!(*network, Network::Undecided) {
                *network = Network::Loopback;
            }
            return Ok(());
        };
        if shared::network_of(self.pid()).as_deref() == Some(path) {
            if matches!(*network, Network::Undecided) {
                *network = own(path);
                if let Network::Namespace { namespace, .. } = &*network {
                    move_into(namespace, devices).await?;
                }
            }
            return Ok(());
        }
        let (opened, is_first) = (path.to_owned(), matches!(*network, Network::Undecided));
        let open = blocking("open", path, move || {
            let namespace = Namespace::open(&opened)?;
            if is_first {
                network::refuse_anothers(&namespace)?;
            }
            Ok(namespace)
        });
        let asked = open.await?;
        let other = |has: &dyn std::fmt::Display| {
            let path = path.display();
            let text = format!("network namespace {path}: containers of one sandbox share {has}");
            Err(Error::InvalidArgument(text))
        };
        match &*network {
            Network::Namespace { namespace, .. } if !namespace.is(&asked) => {
                other(&namespace.path().display())
            }
            Network::Namespace { .. } => Ok(()),
            Network::Loopback => other(&"its network, which has a loopback interface alone"),
            Network::Undecided => {
                let namespace = Arc::new(asked);
                move_into(&namespace, devices).await?;
                let interfaces = self.attach_network(agent, &namespace).await?;
                *network = Network::Namespace { namespace, interfaces };
                Ok(())
            }
        }
    }

    /// That on the host, if it has one.
    pub(super) async fn network_namespace(&self) -> Option<Arc<Namespace>> {
        match &*self.0.network.lock().await {
            Network::Namespace { namespace, .. } => Some(namespace.clone()),
            Network::Undecided | Network::Loopback => None,
        }
    }

    /// Looks again where there was no interface: after hooks that may have made some, and before a container starts, since
    /// some engines make them only then.
    ///
    /// # Errors
    /// As [`Sandbox::join_network`].
    pub(super) async fn look_at_network_again(&self, agent: &Agent) -> Result<()> {
        if let Network::Namespace { namespace, interfaces } = &mut *self.0.network.lock().await
            && interfaces.is_empty()
        {
            *interfaces = self.attach_network(agent, namespace).await?;
        }
        Ok(())
    }

    /// Gives which interfaces there were.
    async fn attach_network(&self, agent: &Agent, namespace: &Arc<Namespace>) -> Result<Vec<u32>> {
        let of = namespace.clone();
        let look = move || Ok(network::find(&of)?);
        let found = blocking("look at", namespace.path(), look).await?;
        let indexes = found.iter().map(|found| found.index).collect();
        if found.is_empty() {
            return Ok(indexes);
        }
        // Before anything is changed there: this process may be killed in the middle.
        self.remember(Some(Joined::new(namespace, &found)))?;
        let (joined, vhost_net) = (namespace.clone(), self.0.vhost_net);
        let join = move || Ok(network::join(&joined, found, vhost_net)?);
        let (tapped, undo) = match blocking("join", namespace.path(), join).await {
            Ok(joined) => joined,
            Err(error) => {
                // What takes too long may still be at it, and is for whoever cleans up.
                let is_late = matches!(&error, Error::Path { source, .. } if source.kind() == ErrorKind::TimedOut);
                if !is_late && let Err(error) = self.remember(None) {
                    tracing::warn!("{}", error.chain());
                }
                return Err(error);
            }
        };
        let mut interfaces = Vec::new();
        let attached = self.give_to_guest(agent, tapped, &mut interfaces).await;
        if let Err(error) = attached {
            for NetworkInterface { device, name, .. } in interfaces {
                if let Err(error) = self.0.vm.detach_network(device).await {
                    tracing::warn!("network interface {name}: {}", error.chain());
                }
            }
            for (what, error) in undo.run_aside().await {
                tracing::warn!("undo {what}: {error}");
            }
            self.remember(None)?;
            return Err(error);
        }
        self.0.interfaces.fetch_add(interfaces.len(), Ordering::Relaxed);
        self.undo_in_the_end("leave the network namespace", undo);
        Ok(indexes)
    }

    /// For who cleans up if this process is killed.
    fn remember(&self, joined: Option<Joined>) -> Result<()> {
        match SandboxState::read(&self.0.paths)? {
            Some(state) => SandboxState { network: joined, ..state }.write(&self.0.paths),
            None => Ok(()),
        }
    }

    async fn give_to_guest(
        &self,
        agent: &Agent,
        tapped: Vec<Tapped>,
        interfaces: &mut Vec<NetworkInterface>,
    ) -> Result<()> {
        for Tapped { mut interface, mac, mtu, tap, vhost, .. } in tapped {
            interface.device = self.0.vm.attach_network(&tap, vhost.as_ref(), mac, mtu).await?;
            let (id, name, device) = (self.id(), &interface.name, interface.device);
            tracing::info!("{id}: network interface {name} is device {device}");
            interfaces.push(interface);
        }
        agent.setup_network(interfaces.clone()).await
    }

    /// When the machine has ended; or now, if that was.
    pub(super) fn undo_in_the_end(&self, what: &str, undo: Undo) {
        let mut all = self.0.undo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = all.as_mut() {
            all.push(what, move || {
                drop(undo);
                Ok(())
            });
        }
    }
}
