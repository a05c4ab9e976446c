//! A message a packet, with descriptors: what every `SOCK_SEQPACKET` socket of the project's carries.
//!
//! JSON, at most [`MAX_MESSAGE`] bytes, with up to [`MAX_FDS`] descriptors. Between shim and VMM
//! ([`crate::control`]), the agent and its workers, the command line and its monitors.

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors with one message: the layers of an image. The kernel takes no more than 253 (SCM_RIGHTS, unix(7)).
pub const MAX_FDS: usize = 128;

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
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
/// [`PacketError::TooLong`] and [`PacketError::Socket`].
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    let bytes = serde_json::to_vec(message).map_err(PacketError::Malformed)?;
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(PacketError::TooLong);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let iov = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .map_err(|e| match e {
            nix::Error::EPIPE | nix::Error::ECONNRESET => PacketError::Closed,
            e => PacketError::Socket(e.into()),
        })
}

/// Reads one message and its descriptors (close-on-exec); blocks as the socket does. Where there is no room for all of
/// them, as this process has as many files open as it may, there is none.
///
/// # Errors
/// [`PacketError::Closed`] at the end of the socket; see the other variants.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), PacketError> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // A peer that has left something unread is told of first, and once; what it said before can be read after.
    let mut resets_left = 1;
    let message = loop {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket.as_fd(), &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(Errno::CONNRESET) if resets_left > 0 => resets_left -= 1,
            Err(Errno::CONNRESET) => return Err(PacketError::Closed),
            Err(e) => return Err(PacketError::Socket(e.into())),
        }
    };
    let mut fds: Vec<OwnedFd> = control.drain().flat_map(descriptors).collect();
    let is_cut = message.flags.contains(ReturnFlags::CTRUNC);
    if message.flags.contains(ReturnFlags::TRUNC) || is_cut && fds.len() >= MAX_FDS {
        return Err(PacketError::TooLong);
    }
    if is_cut {
        fds.clear();
    }
    if message.bytes == 0 {
        return Err(PacketError::Closed);
    }
    let value = serde_json::from_slice(&bytes[..message.bytes]).map_err(PacketError::Malformed)?;
    Ok((value, fds))
}

fn descriptors(part: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match part {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Command, Event};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send as send_bytes, socketpair};

    const EVENT: Event = Event::Done { outcome: Ok(7) };

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
    fn as_many_descriptors_arrive_as_may_be_sent() {
        let (a, b) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, &Command::Counters, &[file.as_fd(); MAX_FDS]).unwrap();
        assert_eq!(receive::<Command>(&b).unwrap().1.len(), MAX_FDS);
        let sent = send(&a, &Command::Counters, &[file.as_fd(); MAX_FDS + 1]);
        assert!(matches!(sent, Err(PacketError::TooLong)));
    }

    #[test]
    fn more_descriptors_than_there_is_space_for_are_refused() {
        let (a, b) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let raw = [file.as_raw_fd(); MAX_FDS + 8];
        let iov = [IoSlice::new(b"\"counters\"")];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(a.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        assert!(matches!(receive::<Command>(&b), Err(PacketError::TooLong)));
    }

    #[test]
    fn the_end_of_the_socket_is_told_from_a_bad_message() {
        let (a, b) = pair();
        send_bytes(a.as_raw_fd(), b"{\"what\":1}", MsgFlags::empty()).unwrap();
        assert!(matches!(receive::<Command>(&b), Err(PacketError::Malformed(_))));
        drop(a);
        assert!(matches!(receive::<Command>(&b), Err(PacketError::Closed)));
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_read() {
        let (a, b) = pair();
        send(&b, &Command::Counters, &[]).unwrap();
        send(&a, &EVENT, &[]).unwrap();
        drop(a);
        assert_eq!(receive::<Event>(&b).unwrap().0, EVENT);
        assert!(matches!(receive::<Event>(&b), Err(PacketError::Closed)));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_on_both_sides() {
        let (a, b) = pair();
        let event = Event::Failed { error: "x".repeat(MAX_MESSAGE), remedy: String::new() };
        assert!(matches!(send(&a, &event, &[]), Err(PacketError::TooLong)));
        send_bytes(a.as_raw_fd(), &vec![b' '; MAX_MESSAGE + 1], MsgFlags::empty()).unwrap();
        assert!(matches!(receive::<Event>(&b), Err(PacketError::TooLong)));
    }
}
