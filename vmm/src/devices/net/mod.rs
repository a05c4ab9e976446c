//! virtio-net on a tap of the host (virtio 1.3 §5.1): one pair of queues, no control queue.
//!
//! Frames go straight between the tap and guest memory, each behind the header that Linux's tap and virtio share.
//! What of it the guest may say is checked first ([`header`]); what the host's kernel says is passed on. Or the host's
//! kernel does all that, where it is asked to ([`host`]).

mod header;
mod host;
mod offloads;
mod rx;
#[cfg(test)]
mod tests;
mod tx;
mod worker;

use crate::virtio::chain::ChainError;
use crate::virtio::{
    ActivateError, Activation, F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice, Worker,
};
use std::fs::File;
use std::io;
use std::sync::Arc;
use worker::NetWorker;

pub use header::HEADER;
pub(crate) use host::requests as vhost_requests;
pub(crate) use offloads::TUNSETOFFLOAD;

const NAME: &str = "net";
const DEVICE_ID: u32 = 1;
/// Receive and transmit queue (§5.1.2).
pub(super) const QUEUE_SIZES: [u16; 2] = [256; 2];

/// `VIRTIO_NET_F_*` (§5.1.3).
pub mod feature {
    /// The driver sends frames whose checksum is yet to be made.
    pub const CSUM: u64 = 1 << 0;
    /// It takes such frames.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The configuration space has an MTU.
    pub const MTU: u64 = 1 << 3;
    /// And a MAC.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 that is yet to be cut into segments.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// And over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// It sends such over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// And over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A received frame may lie in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
}

/// All that are offered.
pub const FEATURES: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::MRG_RXBUF
    | F_EVENT_IDX
    | F_INDIRECT_DESC;

/// Bytes of the configuration space up to the MTU (§5.1.4).
const CONFIG_LEN: usize = 12;

/// Least MTU, IPv4's.
const MIN_MTU: u16 = 68;

/// An MTU that no interface has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an interface's MTU is {0}: it takes at least {MIN_MTU}")]
pub struct OddMtu(u16);

/// What stops the device until its driver resets it.
#[derive(Debug, thiserror::Error)]
enum NetError {
    /// A ring or a chain breaks the rules.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A buffer for received frames does not hold the header of one.
    #[error("a receive buffer has {0} bytes")]
    SmallBuffer(usize),
}

/// The front.
pub struct Net {
    tap: Arc<File>,
    /// Serves the queues in place of this process.
    host: Option<host::Backend>,
    mac: [u8; 6],
    mtu: u16,
}

impl Net {
    /// An interface on a non-blocking tap that puts headers of [`HEADER`] bytes before its frames (`IFF_VNET_HDR`,
    /// `TUNSETVNETHDRSZ`).
    ///
    /// # Errors
    /// [`OddMtu`].
    pub fn new(tap: File, mac: [u8; 6], mtu: u16) -> Result<Self, OddMtu> {
        if mtu < MIN_MTU {
            return Err(OddMtu(mtu));
        }
        Ok(Self { tap: Arc::new(tap), host: None, mac, mtu })
    }

    /// Has the host's kernel serve its queues, by an open `/dev/vhost-net` that nobody has used before.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn served_by_host(self, vhost: File) -> io::Result<Self> {
        Ok(Self { host: Some(host::Backend::new(vhost)?), ..self })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.mac);
        // Neither status (6) nor max_virtqueue_pairs (8) is offered.
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        super::read_config(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        if let Some(host) = &self.host {
            return Ok(Box::new(host.worker(activation, &self.tap, self.mtu)?));
        }
        let queues = (activation.take_queue(0)?, activation.take_queue(1)?);
        let worker = NetWorker::new(queues, &activation, self.tap.clone(), self.mtu);
        Ok(Box::new(worker))
    }
}
