//! What commands print on standard output, for programs that may have read enough.

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use std::io::{self, ErrorKind, Write};

/// Prints to standard output. Where nobody reads it any more the process ends quietly, as Go's programs do: by
/// SIGPIPE.
///
/// # Errors
/// It can't be written.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    or_end(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The same for what was written to standard output in another way.
///
/// # Errors
/// It could not be written.
pub(crate) fn or_end(written: io::Result<()>) -> Result<()> {
    if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        // Only now: a monitor that has gone must not end who asks it something.
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
        raise(Signal::SIGPIPE)?;
    }
    written.context("write to standard output")
}
