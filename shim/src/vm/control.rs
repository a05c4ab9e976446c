//! The shim's end of the control socket, for tokio.

use crate::error::{Error, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::control::{self, Command, ControlError, Event};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends commands to a VMM and reads its events.
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
        set_nonblocking(&ours).map_err(Error::system("make the control socket non-blocking"))?;
        // SAFETY: the AsyncFd owns the descriptor and nothing takes it out, so it stays open while registered.
        let socket = unsafe { AsyncFd::register(ours) };
        let socket = socket.map_err(Error::system("watch the control socket"))?;
        Ok((Self { socket }, theirs))
    }

    /// Sends one command.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn send(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        self.io(Interest::WRITABLE, |socket| control::send(socket, command, fds)).await
    }

    /// Waits for the next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn receive(&self) -> Result<(Event, Vec<OwnedFd>), ControlError> {
        self.io(Interest::READABLE, |socket| control::receive(socket)).await
    }

    /// Repeats `call` whenever the socket is ready, until it no longer would block.
    async fn io<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let outcome = self.socket.async_io(interest, |fd| match call(fd.as_fd()) {
            Err(ControlError::Socket(e)) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            other => Ok(other),
        });
        outcome.await.map_err(ControlError::Socket)?
    }
}

fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
