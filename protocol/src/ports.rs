//! vsock ports and paths that host and guest agree on.

/// The guest listens: the agent's ttrpc service.
pub const RPC: u32 = 1024;

/// The guest listens: standard streams. The host sends [`StreamPreamble`] first, then raw bytes flow.
pub const STDIO: u32 = 1025;

/// The host listens (CID 2): the agent connects when [`RPC`] and [`STDIO`] accept, which is how the
/// host learns that it is ready, and then writes its log and the guest kernel's, as lines of text.
pub const LOG: u32 = 1026;

/// The longest message of the agent's that the host takes, bytes.
pub const MAX_ANSWER: u64 = 128 << 10;

/// Where the agent mounts the sandbox's shared directory.
pub const SHARED_DIR: &str = "/run/kata-like/shared";

/// Where the agent makes the nodes of containers' disks, and mounts what is on them.
pub const DISKS_DIR: &str = "/run/kata-like/disks";

/// Where the guest has file systems in memory that containers of a pod share.
pub const MEMORY_DIR: &str = "/run/kata-like/memory";

/// The virtio-fs tag of the sandbox's shared directory.
pub const SHARED_TAG: &str = "shared";

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
