//! A terminal for a process in the background: its master goes to who asked for it, over the console socket
//! (OCI runtimes' `--console-socket`); its slave becomes this process's own standard streams.

use crate::descriptors;
use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::path::Path;

/// Makes a terminal of `size` (columns, rows), sends its master to `socket` and takes over its slave.
///
/// This process has to lead its session: the terminal becomes that session's, so that a change of its size and
/// its hang-up arrive as signals.
pub(crate) fn take_over(socket: &Path, size: Option<(u16, u16)>) -> Result<()> {
    let stream = descriptors::connect("console", socket)?;
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("make a terminal")?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    if let Some((ws_col, ws_row)) = size {
        tcsetwinsize(&master, Winsize { ws_col, ws_row, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = openat(CWD, name.as_c_str(), flags, Mode::empty()).context("open the terminal")?;
    rustix::process::ioctl_tiocsctty(&slave).context("take the terminal over")?;
    descriptors::send(&stream, name.as_bytes(), master)?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)?;
    Ok(())
}
