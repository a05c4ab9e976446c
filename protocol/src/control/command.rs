//! What the shim asks of its VMM.

use crate::machine::{MachineConfig, Size};
use serde::{Deserialize, Serialize};

/// The parts of a disk begin at multiples of it, bytes: no file system has larger blocks.
pub const PART_BLOCK: u64 = 4096;

/// Where parts of these sizes begin on a disk of several, see [`Command::AttachDisk`], and how many bytes each takes
/// there; all bytes.
pub fn part_offsets(parts: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    parts.iter().scan(0u64, |end, bytes| {
        let (start, takes) = (*end, bytes.next_multiple_of(PART_BLOCK));
        *end = start.saturating_add(takes);
        Some((start, takes))
    })
}

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
    /// Let the machine use so much, at most [`MachineConfig::max`]; answered by [`super::Event::Done`] with the guest
    /// address at which added memory begins. What is taken away the guest must have let go before; memory
    /// loses its contents.
    Resize(Size),
    /// Put the files or block devices that come with this message into an empty slot as one virtio-blk device;
    /// answered by [`super::Event::Done`] with its number: the guest calls it `virtio-mmio.NUMBER`, and sees it when
    /// its driver is bound to it next.
    AttachDisk {
        /// How many bytes of each file, in their order, are on the disk; none is 0. One: a multiple of 512. Several,
        /// at most [`super::MAX_FDS`], if `read_only`: each begins at the next multiple of [`PART_BLOCK`], and what is
        /// between them, and behind the last, reads as zeros. See [`part_offsets`].
        parts: Vec<u64>,
        /// Offered with `VIRTIO_BLK_F_RO`; the descriptors are to be open for reading only then.
        read_only: bool,
    },
    /// Empty the slot with this number; answered by [`super::Event::Done`]. A guest that still uses the disk sees
    /// a device without a function.
    DetachDisk {
        /// As [`Command::AttachDisk`] gave it.
        device: u32,
    },
    /// Put a network interface on the tap that comes with this message into an empty slot; answered as
    /// [`Command::AttachDisk`]. The tap is non-blocking, and its frames have virtio headers of 12 bytes. If an open
    /// `/dev/vhost-net` comes behind it, the host's kernel serves the interface's queues.
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
    /// Ask for [`super::Event::Counters`]: tests do, which find out by them what a device did.
    Counters,
    /// End the machine at once; the VMM answers [`super::Event::Exited`] and exits 0.
    Stop,
}
