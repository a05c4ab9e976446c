//! The control socket between a shim and its VMM.
//!
//! A connected `SOCK_SEQPACKET` unix socket pair; the VMM finds its end at descriptor [`CONTROL_FD`].
//! One message a packet: JSON, at most [`MAX_MESSAGE`] bytes, with up to [`MAX_FDS`] descriptors.
//! The first message is [`Command::Boot`]. The VMM ends when the socket does.

use crate::machine::{MachineConfig, Size};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The descriptor at which the VMM finds its end of the control socket.
pub const CONTROL_FD: RawFd = 3;

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors with one message.
pub const MAX_FDS: usize = 16;

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
    /// Let the machine use so much, at most [`MachineConfig::max`]; answered by [`Event::Done`] with the guest
    /// address at which added memory begins. What is taken away the guest must have let go before; memory
    /// loses its contents.
    Resize(Size),
    /// Put the file or block device that comes with this message into an empty slot as a virtio-blk device;
    /// answered by [`Event::Done`] with its number: the guest calls it `virtio-mmio.NUMBER`, and sees it when
    /// its driver is bound to it next.
    AttachDisk {
        /// Its size, bytes: a positive multiple of 512.
        bytes: u64,
        /// Offered with `VIRTIO_BLK_F_RO`; the descriptor is to be open for reading only then.
        read_only: bool,
    },
    /// Empty the slot with this number; answered by [`Event::Done`]. A guest that still uses the disk sees
    /// a device without a function.
    DetachDisk {
        /// As [`Command::AttachDisk`] gave it.
        device: u32,
    },
    /// Ask for [`Event::Counters`].
    Counters,
    /// End the machine at once; the VMM answers [`Event::Exited`] and exits 0.
    Stop,
}

/// VMM → shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The machine could not be built; the VMM exits 1.
    Failed {
        /// What went wrong, naming the thing.
        error: String,
        /// What to do about it.
        remedy: String,
    },
    /// The process is confined and the vCPUs run.
    Running(BootTimes),
    /// The guest connected to a host port; its stream is the descriptor of this message.
    Accepted {
        /// The host port.
        port: u32,
    },
    /// Answer to [`Command::Pause`].
    Paused,
    /// Answer to [`Command::Resume`].
    Resumed,
    /// Answer to a command that says so.
    Done {
        /// What it says, or why nothing has changed.
        outcome: Result<u64, String>,
    },
    /// Answer to [`Command::Counters`]: name and value, for people and for reports of hung guests.
    Counters(Vec<(String, u64)>),
    /// The machine has ended; the VMM exits next.
    Exited {
        /// Why.
        reason: ExitReason,
    },
}

/// `CLOCK_MONOTONIC` instants of a start, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// `main` began.
    pub process_start: u64,
    /// [`Command::Boot`] was read.
    pub config_read: u64,
    /// Memory, kernel and devices were in place.
    pub machine_built: u64,
    /// The process was confined; the vCPUs were let go.
    pub vcpus_started: u64,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off or rebooted.
    GuestShutdown,
    /// The guest kernel panicked: it said so before it rebooted (`panic=-1`), the text is on the console.
    GuestPanic,
    /// The CPU shut down (triple fault).
    TripleFault,
    /// [`Command::Stop`], or the control socket ended.
    Stopped,
    /// The VMM could not go on.
    Internal(String),
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest shut down"),
            Self::GuestPanic => f.write_str("the guest kernel panicked"),
            Self::TripleFault => f.write_str("the guest's CPU shut down (triple fault)"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Internal(why) => write!(f, "the VMM failed: {why}"),
        }
    }
}

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("control socket")]
    Socket(#[source] std::io::Error),
    /// The peer closed its end.
    #[error("control socket closed by the peer")]
    Closed,
    /// Longer than [`MAX_MESSAGE`], or more descriptors than [`MAX_FDS`].
    #[error("control message is too long")]
    TooLong,
    /// Not a message of this protocol.
    #[error("control message is malformed")]
    Malformed(#[source] serde_json::Error),
}

/// Sends one message; blocks as the socket does.
///
/// # Errors
/// [`ControlError::TooLong`] and [`ControlError::Socket`].
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(message).map_err(ControlError::Malformed)?;
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(ControlError::TooLong);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let iov = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .map_err(|e| match e {
            nix::Error::EPIPE | nix::Error::ECONNRESET => ControlError::Closed,
            e => ControlError::Socket(e.into()),
        })
}

/// Reads one message and its descriptors (close-on-exec); blocks as the socket does.
///
/// # Errors
/// [`ControlError::Closed`] at the end of the socket; see the other variants.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), ControlError> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .map_err(|e| match e {
        nix::Error::ECONNRESET => ControlError::Closed,
        e => ControlError::Socket(e.into()),
    })?;
    let mut fds = Vec::new();
    for part in message.cmsgs().map_err(|_| ControlError::TooLong)? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let (len, flags) = (message.bytes, message.flags);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(ControlError::TooLong);
    }
    if len == 0 {
        return Err(ControlError::Closed);
    }
    let value = serde_json::from_slice(&bytes[..len]).map_err(ControlError::Malformed)?;
    Ok((value, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send as send_bytes, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, &Command::Connect { port: 7 }, &[file.as_fd()]).unwrap();
        let (command, fds) = receive::<Command>(&b).unwrap();
        assert_eq!(command, Command::Connect { port: 7 });
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn the_end_of_the_socket_is_told_from_a_bad_message() {
        let (a, b) = pair();
        send_bytes(a.as_raw_fd(), b"{\"what\":1}", MsgFlags::empty()).unwrap();
        assert!(matches!(receive::<Command>(&b), Err(ControlError::Malformed(_))));
        drop(a);
        assert!(matches!(receive::<Command>(&b), Err(ControlError::Closed)));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_on_both_sides() {
        let (a, b) = pair();
        let event = Event::Failed { error: "x".repeat(MAX_MESSAGE), remedy: String::new() };
        assert!(matches!(send(&a, &event, &[]), Err(ControlError::TooLong)));
        send_bytes(a.as_raw_fd(), &vec![b' '; MAX_MESSAGE + 1], MsgFlags::empty()).unwrap();
        assert!(matches!(receive::<Event>(&b), Err(ControlError::TooLong)));
    }
}
