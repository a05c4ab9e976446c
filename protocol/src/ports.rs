//! vsock ports and paths that host and guest agree on.

/// The guest listens: the agent's ttrpc service.
pub const RPC: u32 = 1024;

/// The guest listens: standard streams. The host sends [`StreamPreamble`] first, then raw bytes flow.
pub const STDIO: u32 = 1025;

/// The host listens (CID 2): the agent connects when [`RPC`] and [`STDIO`] accept, which is how the
/// host learns that it is ready, and then writes its log and the guest kernel's, as lines of text.
pub const LOG: u32 = 1026;

/// The guest listens: connections to its own localhost. The host sends a [`ForwardPreamble`], the guest answers with the
/// byte [`FORWARDED`] once it is connected, then raw bytes flow; it ends the stream if nobody listens there.
pub const FORWARD: u32 = 1027;

/// See [`FORWARD`].
pub const FORWARDED: u8 = 1;

/// The host listens (CID 2): what asks the guest's 127.0.0.11, port 53, where a container engine has its resolver. The
/// agent sends a [`ResolverPreamble`] first. After [`ResolverPreamble::Datagram`] one message goes each way, behind its
/// length as RFC 1035, 4.2.2 has it for TCP; after [`ResolverPreamble::Connection`] bytes flow as they come.
pub const RESOLVER: u32 = 1028;

/// The longest message of the agent's that the host takes, bytes.
pub const MAX_ANSWER: u64 = 128 << 10;

/// Where the agent mounts the sandbox's shared directory.
pub const SHARED_DIR: &str = "/run/kata-like/shared";

/// Where the agent mounts the same directory read-only, for root file systems to which nobody writes.
pub const LAYERS_DIR: &str = "/run/kata-like/layers";

/// Where the agent makes the nodes of containers' disks, and mounts what is on them.
pub const DISKS_DIR: &str = "/run/kata-like/disks";

/// The name of the disk for what a container writes, in the directory of the host where it would have been written. The
/// agent hides it from the container.
pub const ROOT_DISK: &str = ".kata-like-root-disk";

/// Where the guest has file systems in memory that containers of a pod share.
pub const MEMORY_DIR: &str = "/run/kata-like/memory";

/// Where the guest mounts directories of the host's that several containers have as one.
pub const VOLUMES_DIR: &str = "/run/kata-like/volumes";

/// The virtio-fs tag of the sandbox's shared directory.
pub const SHARED_TAG: &str = "shared";

/// The virtio-fs tag of the same directory, served for what does not change.
pub const LAYERS_TAG: &str = "layers";

/// First bytes of a stream to [`STDIO`]: which of a process's streams it is.
///
/// The host numbers streams from 1 and uses no number twice in the life of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPreamble(pub u64);

impl StreamPreamble {
    /// Length on the wire, bytes.
    pub const LEN: usize = 8;

    /// The wire form: little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        self.0.to_le_bytes()
    }

    /// From the wire form.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

/// First bytes of a stream to [`FORWARD`]: where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardPreamble {
    /// Of TCP.
    pub port: u16,
    /// Whether ::1 is tried first, and 127.0.0.1 only if nobody listens there; else the other way round.
    pub v6_first: bool,
}

impl ForwardPreamble {
    /// Length on the wire, bytes.
    pub const LEN: usize = 3;

    /// The wire form: little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [low, high] = self.port.to_le_bytes();
        [low, high, self.v6_first.into()]
    }

    /// From the wire form.
    pub fn from_bytes([low, high, v6_first]: [u8; Self::LEN]) -> Self {
        Self { port: u16::from_le_bytes([low, high]), v6_first: v6_first != 0 }
    }
}

/// The first byte of a stream to [`RESOLVER`]: how the resolver is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolverPreamble {
    /// By UDP.
    Datagram,
    /// By TCP.
    Connection,
}

impl ResolverPreamble {
    /// The wire form.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Datagram => b'u',
            Self::Connection => b't',
        }
    }

    /// From the wire form; none of any other byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Datagram, Self::Connection].into_iter().find(|known| known.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_connection_goes_is_said_in_three_bytes() {
        for preamble in [
            ForwardPreamble { port: 8080, v6_first: false },
            ForwardPreamble { port: 0xfffe, v6_first: true },
        ] {
            assert_eq!(ForwardPreamble::from_bytes(preamble.to_bytes()), preamble);
        }
    }

    #[test]
    fn how_a_resolver_is_asked_is_one_of_two_bytes() {
        for preamble in [ResolverPreamble::Datagram, ResolverPreamble::Connection] {
            assert_eq!(ResolverPreamble::from_byte(preamble.to_byte()), Some(preamble));
        }
        assert_eq!(ResolverPreamble::from_byte(0), None);
    }
}
