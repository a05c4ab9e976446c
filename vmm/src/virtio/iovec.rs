//! Vectored system calls straight on guest memory: no copy in between.
//!
//! The guest may change the bytes while the kernel reads or writes them. That is harmless: the
//! kernel copies each byte once, and nothing here looks at them.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::VolatileSlice;

/// Most pieces in one system call (`IOV_MAX` of Linux).
pub const MAX_PIECES: usize = 1024;

/// Bytes of a page.
const PAGE: usize = 4096;

/// A list of pieces of guest memory, which stays mapped for `'a`.
#[derive(Default)]
pub struct IoVecs<'a> {
    pieces: Vec<libc::iovec>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> IoVecs<'a> {
    /// Adds a piece.
    pub fn push(&mut self, slice: &VolatileSlice<'a>) {
        let base = slice.ptr_guard_mut().as_ptr().cast();
        self.pieces.push(libc::iovec { iov_base: base, iov_len: slice.len() });
        self.len += slice.len();
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    fn advance(&mut self, mut done: usize) {
        self.len -= done;
        let whole = self
            .pieces
            .iter()
            .take_while(|p| {
                let used = p.iov_len <= done;
                if used {
                    done -= p.iov_len;
                }
                used
            })
            .count();
        self.pieces.drain(..whole);
        if let Some(first) = self.pieces.first_mut() {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(done).cast();
            first.iov_len -= done;
        }
    }

    /// Runs `call` on at most [`MAX_PIECES`] pieces at a time until all bytes are moved.
    fn all(
        mut self,
        mut offset: u64,
        call: impl Fn(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<()> {
        while self.len > 0 {
            let count = self.pieces.len().min(MAX_PIECES) as i32;
            let position = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            match call(self.pieces.as_ptr(), count, position) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n if n > 0 => {
                    self.advance(n as usize);
                    offset += n as u64;
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills all pieces from a file at `offset`; calls `before_waiting` unless the host has it all in memory.
    ///
    /// # Errors
    /// The system call's, and `UnexpectedEof` when the file ends first.
    pub fn read_from(
        mut self,
        file: BorrowedFd<'_>,
        mut offset: u64,
        before_waiting: impl FnOnce(),
    ) -> io::Result<()> {
        let fd = file.as_raw_fd();
        let count = self.pieces.len().min(MAX_PIECES) as i32;
        let position = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as below.
        let n =
            unsafe { libc::preadv2(fd, self.pieces.as_ptr(), count, position, libc::RWF_NOWAIT) };
        // Whatever keeps it from that is found again.
        if let Ok(n @ 1..) = usize::try_from(n) {
            self.advance(n);
            offset += n as u64;
        }
        if self.is_empty() {
            return Ok(());
        }
        before_waiting();
        // SAFETY: the pieces are writable guest memory that outlives `'a`; the descriptor is borrowed.
        self.all(offset, |iov, count, at| unsafe { libc::preadv(fd, iov, count, at) })
    }

    /// Writes all pieces to a file at `offset`.
    ///
    /// # Errors
    /// The system call's.
    pub fn write_to(self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let fd = file.as_raw_fd();
        // SAFETY: the pieces are readable guest memory that outlives `'a`; the descriptor is borrowed.
        self.all(offset, |iov, count, at| unsafe { libc::pwritev(fd, iov, count, at) })
    }

    /// Gives the whole pages of all pieces back to the host; they read as zeroes then. Memory that is
    /// no shared file's, and that of a host that can't do it, stays as it is.
    pub fn discard(self) {
        for piece in self.pieces {
            let start = (piece.iov_base as usize).next_multiple_of(PAGE);
            let end = (piece.iov_base as usize + piece.iov_len) & !(PAGE - 1);
            if start < end {
                let at = piece.iov_base.with_addr(start);
                // SAFETY: the range lies in guest memory that outlives `'a`, and nothing here holds a
                // reference into it. Its pages go from the file, so from all who map it.
                let _ = unsafe { libc::madvise(at, end - start, libc::MADV_REMOVE) };
            }
        }
    }

    /// Reads one packet of a tap, as much of it as there is room; a packet has one call. The descriptor is not to block.
    ///
    /// # Errors
    /// The system call's; `WouldBlock` when there is none.
    pub fn read_packet(self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.pieces.len().min(MAX_PIECES) as i32;
        // SAFETY: the pieces are writable memory that outlives `'a`; the descriptor is borrowed.
        let n = unsafe { libc::readv(tap.as_raw_fd(), self.pieces.as_ptr(), count) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes all pieces, at most [`MAX_PIECES`], to a tap as one packet. The descriptor is not to block.
    ///
    /// # Errors
    /// The system call's.
    pub fn write_packet(self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.pieces.len().min(MAX_PIECES) as i32;
        // SAFETY: the pieces are readable memory that outlives `'a`; the descriptor is borrowed.
        let n = unsafe { libc::writev(tap.as_raw_fd(), self.pieces.as_ptr(), count) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: msghdr is plain data, for which all zeroes means "no name, no control data".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len().min(MAX_PIECES);
        message
    }

    /// Receives what a stream socket has, at most the room there is; 0 at the end of the stream.
    /// Never blocks.
    ///
    /// # Errors
    /// The system call's; `WouldBlock` when there is nothing yet.
    pub fn receive(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut message = self.message();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the pieces are writable guest memory that outlives `'a`; `message` is valid for the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Sends as much as a stream socket takes now; at most [`MAX_PIECES`] pieces. Never blocks.
    ///
    /// # Errors
    /// The system call's; `WouldBlock` when the socket takes nothing, `BrokenPipe` when its reader is gone.
    pub fn send(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = self.message();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pieces are readable guest memory that outlives `'a`; `message` is valid for the call.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
