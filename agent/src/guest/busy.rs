//! Whether more processors would be used: by the kernel's own account of who waits for one (PSI,
//! `Documentation/accounting/psi.rst`), which costs nothing while nobody does.

use crate::io::transport;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use tokio::io::Interest;

/// Processes wait for one of two seconds, microseconds: what starts is not busy yet.
const TRIGGER: &[u8] = b"some 1000000 2000000\0";

/// Waits until processes have waited that long.
///
/// # Errors
/// The kernel keeps no account.
pub async fn wait() -> io::Result<()> {
    let waiting = transport::pollable_for(trigger()?.into(), Interest::PRIORITY)?;
    waiting.ready(Interest::PRIORITY).await.map(drop)
}

/// There is one for each descriptor.
fn trigger() -> io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/proc/pressure/cpu")?;
    file.write_all(TRIGGER)?;
    Ok(file)
}
