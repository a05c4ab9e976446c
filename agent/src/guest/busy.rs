//! Whether more processors would be used: by the kernel's own account of who waits for one (PSI,
//! `Documentation/accounting/psi.rst`).
//!
//! The kernel has a thread look at the account ten times in each window for whoever may have that. For others it is looked
//! at when the averages are made anew, every two seconds and not at all while nothing happens: so an idle guest has nothing
//! to wake up for. The thread would keep itself awake: its own runs are what happens.

use crate::io::transport;
use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::unistd::{SysconfVar, sysconf};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// Processes wait for one of two seconds, microseconds; those who may not have the thread have to take windows of two.
const TRIGGER: &[u8] = b"some 1000000 2000000\0";

/// Two windows in a row, with some room: once may have been what starts.
const IN_A_ROW: Duration = Duration::from_secs(5);

/// Waits until processes have waited that long twice in a row, and still do; gives how many tasks run or could.
///
/// # Errors
/// The kernel keeps no account.
pub async fn wait() -> io::Result<u32> {
    let waiting = transport::pollable_for(trigger()?.into(), Interest::PRIORITY)?;
    let mut before: Option<Instant> = None;
    loop {
        waiting.ready(Interest::PRIORITY).await?.clear_ready();
        if before.replace(Instant::now()).is_none_or(|before| before.elapsed() > IN_A_ROW) {
            continue;
        }
        let loadavg = std::fs::read_to_string("/proc/loadavg")?;
        let runnable = runnable(&loadavg).ok_or(io::ErrorKind::InvalidData)?;
        if i64::from(runnable) > sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1) {
            return Ok(runnable);
        }
    }
}

/// The number before the slash in the fourth field (proc_loadavg(5)), without the thread that reads it.
fn runnable(loadavg: &str) -> Option<u32> {
    let (running, _) = loadavg.split_whitespace().nth(3)?.split_once('/')?;
    running.parse::<u32>().ok().map(|running| running.saturating_sub(1))
}

/// There is one for each descriptor.
fn trigger() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut file = unprivileged(|| options.open("/proc/pressure/cpu"))?;
    file.write_all(TRIGGER)?;
    Ok(file)
}

/// Opens as one who may not have the thread: the kernel looks at who has opened the file.
fn unprivileged<T>(open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let other = |error: CapsError| io::Error::other(error.to_string());
    let right = Capability::CAP_SYS_RESOURCE;
    let had = caps::has_cap(None, CapSet::Effective, right).map_err(other)?;
    caps::drop(None, CapSet::Effective, right).map_err(other)?;
    let opened = open();
    if had {
        caps::raise(None, CapSet::Effective, right).map_err(other)?;
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_is_laid_down_is_had_again() {
        let has = || caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap();
        let before = has();
        let within = unprivileged(|| Ok(has())).unwrap();
        assert_eq!((within, has()), (false, before));
    }

    #[test]
    fn the_runnable_are_counted_without_the_one_that_counts() {
        assert_eq!(runnable("0.20 0.18 0.12 5/80 11206\n"), Some(4));
        assert_eq!(runnable("0.00 0.00 0.00 0/80 1"), Some(0));
        assert_eq!(runnable("0.20 0.18"), None);
    }
}
