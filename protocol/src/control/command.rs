//! What the shim asks of its VMM.

use crate::machine::{MachineConfig, Size};
use serde::{Deserialize, Serialize};

/// Shim → VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Build the machine, confine the process, run the guest. Descriptors: see `FsConfig::socket_fd`.
    Boot(Box<MachineConfig>),
    /// Join the stream socket that comes with this message to a guest vsock port.
    /// Refused or broken streams are closed; there is no other answer.
    Connect {
        /// The guest's port.
        port: u32,
    },
    /// Stop all vCPUs and device workers where they are.
    Pause,
    /// Go on after [`Command::Pause`].
    Resume,
    /// Let the machine use so much, at most [`MachineConfig::max`]; answered by [`super::Event::Done`] with the guest
    /// address at which added memory begins. What is taken away the guest must have let go before; memory
    /// loses its contents.
    Resize(Size),
    /// Put the file or block device that comes with this message into an empty slot as a virtio-blk device;
    /// answered by [`super::Event::Done`] with its number: the guest calls it `virtio-mmio.NUMBER`, and sees it when
    /// its driver is bound to it next.
    AttachDisk {
        /// Its size, bytes: a positive multiple of 512.
        bytes: u64,
        /// Offered with `VIRTIO_BLK_F_RO`; the descriptor is to be open for reading only then.
        read_only: bool,
    },
    /// Empty the slot with this number; answered by [`super::Event::Done`]. A guest that still uses the disk sees
    /// a device without a function.
    DetachDisk {
        /// As [`Command::AttachDisk`] gave it.
        device: u32,
    },
    /// Put a network interface on the tap that comes with this message into an empty slot; answered as
    /// [`Command::AttachDisk`]. The tap is non-blocking, and its frames have virtio headers of 12 bytes.
    AttachNetwork {
        /// What the guest is told to be.
        mac: [u8; 6],
        /// Bytes, 68 or more.
        mtu: u16,
    },
    /// Empty the slot with this number, and let go of the tap; answered by [`super::Event::Done`].
    DetachNetwork {
        /// As [`Command::AttachNetwork`] gave it.
        device: u32,
    },
    /// Ask for [`super::Event::Counters`].
    Counters,
    /// End the machine at once; the VMM answers [`super::Event::Exited`] and exits 0.
    Stop,
}
