//! The control socket between a shim and its VMM.
//!
//! A connected `SOCK_SEQPACKET` unix socket pair that carries [`crate::packet`]s; the VMM finds its end at
//! descriptor [`CONTROL_FD`]. The first message is [`Command::Boot`]. The VMM ends when the socket does.

mod command;
mod event;

pub use crate::packet::{MAX_FDS, MAX_MESSAGE, PacketError as ControlError, receive, send};
pub use command::{Command, PART_BLOCK, part_offsets};
pub use event::{BootTimes, Event, ExitReason};

/// The descriptor at which the VMM finds its end of the control socket.
pub const CONTROL_FD: std::os::fd::RawFd = 3;
