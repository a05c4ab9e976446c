//! The ends of a process's standard streams: pipes, or a terminal of the container's.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use std::fs::OpenOptions;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// Bytes that a pipe holds: the most that the kernel gives by default, for few wake-ups.
pub const PIPE_SIZE: i32 = 1024 * 1024;

/// What the process gets as descriptors 0, 1 and 2.
#[derive(Debug)]
pub struct ChildEnds {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Makes a pipe for each wanted stream, owned by the process's user, and opens /dev/null for the
/// others. Second: our ends of the wanted ones, in order, not blocking.
///
/// # Errors
/// When the kernel is out of descriptors.
pub fn pipes(wanted: [bool; 3], owner: (u32, u32)) -> io::Result<(ChildEnds, Vec<OwnedFd>)> {
    let mut ours = Vec::new();
    let mut end = |number: usize| -> io::Result<OwnedFd> {
        if !wanted[number] {
            return Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into());
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        // Refused when the user's pipes hold too much already; the default size works as well.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        let (child, agent) = if number == 0 { (reader, writer) } else { (writer, reader) };
        // `echo >/dev/stdout` opens the pipe anew, as the user that the process runs as.
        fchown(&child, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
        set_nonblocking(&agent)?;
        ours.push(agent);
        Ok(child)
    };
    let ends = ChildEnds { stdin: end(0)?, stdout: end(1)?, stderr: end(2)? };
    Ok((ends, ours))
}

/// The process's side of a terminal whose master this is, opened once more.
///
/// # Errors
/// What the kernel says.
pub fn open_peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a number and makes a descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the terminal's master that libcontainer has sent.
///
/// # Errors
/// When nothing was sent.
pub fn receive_master(listener: &UnixListener) -> io::Result<OwnedFd> {
    // The process exists, so its message is there: not to block turns a surprise into an error.
    listener.set_nonblocking(true)?;
    let (connection, _) = listener.accept()?;
    connection.set_nonblocking(true)?;
    let mut byte = [0; 64];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        connection.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
            let master = unsafe { OwnedFd::from_raw_fd(fd) };
            set_nonblocking(&master)?;
            return Ok(master);
        }
    }
    Err(io::Error::other("no descriptor in the message"))
}

/// Gives the slave of a terminal to a user, who could not open it anew otherwise. Its group stays, which is the
/// one that devpts was mounted with.
///
/// # Errors
/// What the kernel answers.
pub fn give_terminal(master: &OwnedFd, user: u32) -> io::Result<()> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is open and the argument is no pointer.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok(fchown(&slave, Some(Uid::from_raw(user)), None)?)
}

/// Sets a terminal's size by either side; its foreground processes get SIGWINCH.
///
/// # Errors
/// When it is not a terminal.
pub fn resize(terminal: impl AsFd, width: u32, height: u32) -> io::Result<()> {
    let clamp = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    let size =
        libc::winsize { ws_row: clamp(height), ws_col: clamp(width), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the kernel only reads the structure.
    match unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a terminal write a `\n` as it is.
///
/// # Errors
/// When it is not a terminal.
pub fn keep_newlines(terminal: impl AsFd) -> io::Result<()> {
    let mut mode = tcgetattr(&terminal)?;
    mode.output_flags.remove(OutputFlags::ONLCR);
    Ok(tcsetattr(&terminal, SetArg::TCSANOW, &mode)?)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn me() -> (u32, u32) {
        (Uid::current().as_raw(), Gid::current().as_raw())
    }

    #[test]
    fn pipes_are_made_for_wanted_streams_only() {
        let (_child, ours) = pipes([false, true, false], me()).unwrap();
        assert_eq!(ours.len(), 1);
        let (_child, ours) = pipes([false; 3], me()).unwrap();
        assert!(ours.is_empty());
    }

    #[test]
    fn data_flows_from_stdin_and_to_stdout() {
        let (child, mut ours) = pipes([true, true, false], me()).unwrap();
        let (stdout, stdin) = (ours.pop().unwrap(), ours.pop().unwrap());
        std::fs::File::from(stdin).write_all(b"in").unwrap();
        let mut text = String::new();
        std::fs::File::from(child.stdin).read_to_string(&mut text).unwrap();
        assert_eq!(text, "in");
        std::fs::File::from(child.stdout).write_all(b"out").unwrap();
        let mut text = String::new();
        std::fs::File::from(stdout).read_to_string(&mut text).unwrap();
        assert_eq!(text, "out");
    }

    #[test]
    fn a_terminal_is_given_to_a_user_but_not_to_a_group() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let status = || nix::sys::stat::fstat(&pty.slave).unwrap();
        let group = status().st_gid;
        give_terminal(&pty.master, 1234).unwrap();
        assert_eq!((status().st_uid, status().st_gid), (1234, group));
    }

    #[test]
    fn a_terminal_can_be_told_to_leave_newlines_alone() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let written = || {
            nix::unistd::write(&pty.slave, b"a\n").unwrap();
            let mut bytes = [0; 8];
            let n = nix::unistd::read(&pty.master, &mut bytes).unwrap();
            bytes[..n].to_vec()
        };
        assert_eq!(written(), b"a\r\n");
        keep_newlines(&pty.slave).unwrap();
        assert_eq!(written(), b"a\n");
        assert!(keep_newlines(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn a_terminal_takes_a_size_beyond_its_range_as_the_largest() {
        let pty = nix::pty::openpty(None, None).unwrap();
        resize(&pty.master, 100_000, 24).unwrap();
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel writes one winsize into `size`.
        unsafe { libc::ioctl(pty.slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        assert_eq!((size.ws_col, size.ws_row), (u16::MAX, 24));
    }
}
