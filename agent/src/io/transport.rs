//! Where the agent listens and connects: vsock in a guest, abstract unix sockets in tests.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike, UnixAddr,
    VsockAddr, accept4, bind, connect, getsockopt, listen, send, shutdown, socket, sockopt,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Set, it names the abstract unix sockets (`NAME-PORT`) that stand in for vsock ports.
const SOCKETS_VARIABLE: &str = "KATA_LIKE_AGENT_SOCKETS";

/// The address family of the host connection.
#[derive(Debug, Clone)]
pub enum Transport {
    /// AF_VSOCK; the host is CID 2.
    Vsock,
    /// Abstract unix sockets whose names start with this.
    Unix(String),
}

impl Transport {
    /// vsock, unless a test says otherwise in the environment.
    pub fn from_env() -> Self {
        std::env::var(SOCKETS_VARIABLE).map_or(Self::Vsock, Self::Unix)
    }

    fn family(&self) -> AddressFamily {
        match self {
            Self::Vsock => AddressFamily::Vsock,
            Self::Unix(_) => AddressFamily::Unix,
        }
    }

    fn address(&self, cid: u32, port: u32) -> io::Result<Box<dyn SockaddrLike + Send>> {
        Ok(match self {
            Self::Vsock => Box::new(VsockAddr::new(cid, port)),
            Self::Unix(name) => {
                Box::new(UnixAddr::new_abstract(format!("{name}-{port}").as_bytes())?)
            }
        })
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socket(self.family(), SockType::Stream, flags, None)?)
    }

    /// A listening socket on `port`, not blocking.
    ///
    /// # Errors
    /// When the port is taken or the kernel has no such sockets.
    pub fn listen(&self, port: u32) -> io::Result<OwnedFd> {
        let fd = self.socket()?;
        bind(fd.as_raw_fd(), self.address(libc::VMADDR_CID_ANY, port)?.as_ref())?;
        listen(&fd, Backlog::new(128)?)?;
        Ok(fd)
    }

    /// A stream to `port` of the host.
    ///
    /// # Errors
    /// When the host does not accept it.
    pub async fn connect(&self, port: u32) -> io::Result<Stream> {
        let fd = self.socket()?;
        let address = self.address(libc::VMADDR_CID_HOST, port)?;
        match connect(fd.as_raw_fd(), address.as_ref()) {
            Ok(()) => return Stream::new(fd),
            Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = Stream::new(fd)?;
        let _ = stream.0.writable().await?;
        match getsockopt(&stream.0, sockopt::SocketError)? {
            0 => Ok(stream),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Accepts the next connection of a listening socket.
///
/// # Errors
/// What `accept4` says.
pub async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<Stream> {
    let fd = listener
        .async_io(Interest::READABLE, |listener| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            Ok(accept4(listener.as_raw_fd(), flags)?)
        })
        .await?;
    // SAFETY: accept4 has just made this descriptor for this process; nothing else owns it.
    Stream::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A connected stream socket, of whichever family.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Of a connected socket that does not block.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(pollable(fd)?))
    }

    /// The descriptor, to read from or to write to.
    pub fn fd(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self
                .0
                .async_io(tokio::io::Interest::WRITABLE, |fd| {
                    Ok(send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
                })
                .await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Reads what there is, at most `buffer`; 0 at the end.
    ///
    /// # Errors
    /// When the connection was reset.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read(&self.0, buffer).await
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream ends before.
    pub async fn read_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        Ok(())
    }

    /// Ends our direction; the peer reads everything sent before, then the end.
    pub fn finish(&self) {
        // Fails only when the peer has gone, and then there is nobody to tell.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }
}

/// Has the runtime watch a descriptor.
///
/// # Errors
/// When it cannot be polled.
pub fn pollable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    pollable_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// The same for what is of interest of it.
///
/// # Errors
/// When it cannot be polled.
pub fn pollable_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same number, until it is dropped; nothing replaces it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Reads what there is from any descriptor that can be polled; 0 at the end.
///
/// # Errors
/// What `read` says.
pub async fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(tokio::io::Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await
}
