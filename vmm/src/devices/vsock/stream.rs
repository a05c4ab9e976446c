//! A connection and the host's socket that it is joined to.
//!
//! Both directions go straight between the socket and guest memory. Only what the socket does not
//! take at once is buffered, at most the window that the guest was granted: credit is returned as
//! the socket takes the bytes, so a slow reader slows the guest's writer down and nothing is lost.

use super::VsockError;
use super::connection::Connection;
use super::rx::{Received, RxQueue};
use crate::virtio::chain::Cursor;
use crate::virtio::iovec::IoVecs;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use vmm_sys_util::epoll::EventSet;

/// Most packets filled in one system call.
const MAX_BATCH: usize = 32;

/// What [`Stream::turn`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The driver has to provide buffers first.
    Starved,
    /// Done for now; ask [`Stream::has_work`] whether there is more.
    Done,
}

/// A stream. Readiness is remembered, since epoll reports edges only.
pub struct Stream {
    /// The protocol's state.
    pub connection: Connection,
    socket: OwnedFd,
    /// The guest's data that the socket has not taken.
    buffer: VecDeque<u8>,
    readable: bool,
    /// The host has closed its end for both directions.
    hung_up: bool,
    /// The host's reader is gone: the guest's data is thrown away.
    reader_gone: bool,
    /// The end of the host's data was seen.
    end_seen: bool,
    /// Packets to try to fill in the next turn: grows while the socket has plenty.
    batch: usize,
    /// The connection is over for the guest; what is buffered still goes to the host.
    pub orphan: bool,
    /// It waits for its turn.
    pub queued: bool,
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Stream {
    /// Joins a connection to a connected stream socket.
    pub fn new(connection: Connection, socket: OwnedFd) -> Self {
        Self {
            connection,
            socket,
            buffer: VecDeque::new(),
            readable: true,
            hung_up: false,
            reader_gone: false,
            end_seen: false,
            batch: 1,
            orphan: false,
            queued: false,
        }
    }

    /// The events to watch the socket for.
    pub fn events() -> EventSet {
        EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
    }

    /// Whether it has something for the guest.
    pub fn has_work(&self) -> bool {
        !self.orphan
            && (self.connection.control_due()
                || self.readable
                    && self.connection.wants_host_data()
                    && self.connection.guest_room() > 0)
    }

    /// Whether nothing is left to be passed on to the host.
    pub fn is_flushed(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Notes what epoll says about the socket, and passes on what was buffered.
    pub fn socket_ready(&mut self, events: EventSet) {
        let broken = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if broken || events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            self.readable = true;
        }
        self.hung_up |= broken;
        self.flush();
        if self.hung_up && (self.end_seen || self.connection.guest_reads_no_more()) {
            self.connection.host_wrote_last();
            self.reader_is_gone();
        }
    }

    /// Passes `len` bytes of the guest's data on, or buffers them; `len` is within the guest's credit.
    ///
    /// # Errors
    /// When guest memory can't be read.
    pub fn deliver(&mut self, mut data: Cursor<'_>, len: usize) -> Result<(), VsockError> {
        let mut passed = 0;
        if self.buffer.is_empty() && !self.reader_gone && len > 0 {
            let mut pieces = IoVecs::default();
            data.clone().gather(len, &mut pieces)?;
            match pieces.send(self.socket.as_fd()) {
                Ok(n) => passed = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.reader_is_gone(),
            }
        }
        if self.reader_gone {
            passed = len;
        }
        self.connection.forwarded(passed);
        if passed < len {
            data.skip(passed)?;
            let mut rest = vec![0; len - passed];
            data.read(&mut rest)?;
            self.buffer.extend(rest);
            // The socket may have taken only part for another reason than being full; only a refusal
            // makes sure that epoll reports when it takes more.
            self.flush();
        }
        Ok(())
    }

    /// Passes on what is buffered, as far as the socket takes it.
    pub fn flush(&mut self) {
        while !self.buffer.is_empty() {
            match send(self.socket.as_fd(), self.buffer.as_slices().0) {
                Ok(n) => {
                    self.buffer.drain(..n);
                    self.connection.forwarded(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.reader_is_gone(),
            }
        }
        // Memory of a burst is not kept for the life of the stream.
        self.buffer = VecDeque::new();
        if self.connection.guest_wrote_last() {
            self.shut(Shutdown::Write);
        }
    }

    /// The guest takes no more data: the host's writer gets to know.
    pub fn stop_reading(&self) {
        self.shut(Shutdown::Read);
    }

    fn shut(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: the descriptor is owned. An error means that it is shut already.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), how) };
    }

    fn reader_is_gone(&mut self) {
        self.reader_gone = true;
        self.connection.forwarded(self.buffer.len());
        self.buffer.clear();
        self.connection.host_reads_no_more();
    }

    /// Sends the guest one packet without data, or one turn's worth of data.
    ///
    /// # Errors
    /// When the guest's receive queue is not usable.
    pub fn turn(&mut self, rx: &mut RxQueue) -> Result<Turn, VsockError> {
        if self.connection.control_due() {
            if !rx.has_buffer()? {
                return Ok(Turn::Starved);
            }
            if let Some(packet) = self.connection.next_control() {
                rx.put(&packet)?;
            }
            return Ok(Turn::Done);
        }
        let (connection, socket) = (&mut self.connection, self.socket.as_fd());
        let room = connection.guest_room();
        match rx.receive(socket, room, self.batch, |len| connection.data(len))? {
            Received::Starved => return Ok(Turn::Starved),
            Received::Data { full: true } => self.batch = (self.batch * 2).min(MAX_BATCH),
            Received::Data { full: false } => self.batch = 1,
            Received::Empty => self.readable = false,
            Received::End => self.host_wrote_last(),
            Received::Broken => {
                self.hung_up = true;
                self.host_wrote_last();
            }
        }
        Ok(Turn::Done)
    }

    fn host_wrote_last(&mut self) {
        self.end_seen = true;
        self.readable = false;
        self.connection.host_wrote_last();
        if self.hung_up {
            self.reader_is_gone();
        }
    }
}

/// Sends what a stream socket takes now. Never blocks.
fn send(socket: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `data` is valid for reading; the descriptor is borrowed.
    let n = unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
