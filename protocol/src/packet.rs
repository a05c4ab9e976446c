//! A message a packet, with descriptors: what every `SOCK_SEQPACKET` socket of the project's carries.
//!
//! JSON, at most [`MAX_MESSAGE`] bytes, with up to [`MAX_FDS`] descriptors. Between shim and VMM
//! ([`crate::control`]), the agent and its workers, the command line and its monitors.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Reads one message and its descriptors (close-on-exec); blocks as the socket does.
///
/// # Errors
/// [`PacketError::Closed`] at the end of the socket; see the other variants.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), PacketError> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let (fd, flags) = (socket.as_fd().as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
    // A peer that has left something unread is told of first, and once; what it said before can be read after.
    let mut resets_left = 1;
    let message = loop {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(fd, &mut iov, Some(&mut control), flags) {
            Ok(message) => break (message.bytes, message.flags, descriptors(&message)),
            Err(nix::Error::ECONNRESET) if resets_left > 0 => resets_left -= 1,
            Err(nix::Error::ECONNRESET) => return Err(PacketError::Closed),
            Err(e) => return Err(PacketError::Socket(e.into())),
        }
    };
    let (len, flags, fds) = message;
    let fds = fds?;
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(PacketError::TooLong);
    }
    if len == 0 {
        return Err(PacketError::Closed);
    }
    let value = serde_json::from_slice(&bytes[..len]).map_err(PacketError::Malformed)?;
    Ok((value, fds))
}

/// The descriptors that came with a message that was just read.
fn descriptors(message: &RecvMsg<'_, '_, ()>) -> Result<Vec<OwnedFd>, PacketError> {
    let mut fds = Vec::new();
    for part in message.cmsgs().map_err(|_| PacketError::TooLong)? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Command, Event};
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
    fn as_many_descriptors_arrive_as_may_be_sent() {
        let (a, b) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, &Command::Counters, &[file.as_fd(); MAX_FDS]).unwrap();
        assert_eq!(receive::<Command>(&b).unwrap().1.len(), MAX_FDS);
        let sent = send(&a, &Command::Counters, &[file.as_fd(); MAX_FDS + 1]);
        assert!(matches!(sent, Err(PacketError::TooLong)));
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
        send(&a, &Event::Paused, &[]).unwrap();
        drop(a);
        assert_eq!(receive::<Event>(&b).unwrap().0, Event::Paused);
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
