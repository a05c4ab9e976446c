//! What this program does when a test runs it in a container.

use anyhow::{Context as _, Result, bail};
use nix::libc;
use std::ffi::OsString;
use std::os::fd::AsRawFd;

/// The first argument, before the name of what there is to do.
pub const FLAG: &str = "--inside";

/// What `map` writes: as long as what it finds.
pub const MAPPED: &str = "mapped";

/// Does what the arguments after [`FLAG`] say.
pub fn main(arguments: &[OsString]) -> Result<()> {
    let [what, path] = arguments else { bail!("{FLAG} WHAT PATH") };
    match what.to_str() {
        Some("map") => map(path),
        other => bail!("{other:?}: no such thing to do"),
    }
}

/// Writes to a file through memory that is shared with it.
fn map(path: &OsString) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let (length, protection) = (MAPPED.len(), libc::PROT_READ | libc::PROT_WRITE);
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping of a file of this length, in nobody's way.
    let place =
        unsafe { libc::mmap(null, length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if place == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap");
    }
    // SAFETY: the mapping is this long, writable, and nobody else's in this process; then it ends.
    unsafe {
        place.cast::<u8>().copy_from_nonoverlapping(MAPPED.as_ptr(), length);
        libc::munmap(place, length);
    }
    Ok(())
}
