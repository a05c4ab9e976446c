//! One end of a control socket, for tokio.

use crate::error::{Error, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::packet::{self, PacketError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends and receives the packets of [`protocol::packet`] without blocking.
#[derive(Debug)]
pub struct Control {
    socket: AsyncFd<OwnedFd>,
}

impl Control {
    /// A new socket pair: the shim's end and the VMM's.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(Error::system("make the control socket"))?;
        Ok((Self::over(ours)?, theirs))
    }

    /// Over a socket of the type `SOCK_SEQPACKET`.
    ///
    /// # Errors
    /// It can't be polled.
    pub fn over(socket: OwnedFd) -> Result<Self> {
        set_nonblocking(&socket).map_err(Error::system("make the control socket non-blocking"))?;
        // SAFETY: the AsyncFd owns the descriptor and nothing takes it out, so it stays open while registered.
        let socket = unsafe { AsyncFd::register(socket) };
        let socket = socket.map_err(Error::system("watch the control socket"))?;
        Ok(Self { socket })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub async fn send<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), PacketError> {
        self.io(Interest::WRITABLE, |socket| packet::send(socket, message, fds)).await
    }

    /// Sends the first message: an empty socket takes it without waiting, and before any other.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub fn send_first<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), PacketError> {
        packet::send(self.socket.get_ref(), message, fds)
    }

    /// Waits for the next message. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub async fn receive<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), PacketError> {
        self.io(Interest::READABLE, |socket| packet::receive(socket)).await
    }

    /// Repeats `call` whenever the socket is ready, until it no longer would block.
    async fn io<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<T, PacketError>,
    ) -> Result<T, PacketError> {
        let outcome = self.socket.async_io(interest, |fd| match call(fd.as_fd()) {
            Err(PacketError::Socket(e)) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            other => Ok(other),
        });
        outcome.await.map_err(PacketError::Socket)?
    }
}

fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
