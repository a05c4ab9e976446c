//! The server's log: the FIFO `log` in the bundle, which containerd reads.

use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Writes without ever waiting: while nobody reads, lines are lost and counted.
struct Lossy {
    file: File,
    lost: u64,
}

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 {
            let note = format!("({} lines of the log were lost)\n", self.lost);
            if self.file.write(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.file.write(line).is_err() {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends all that is traced from here on to the FIFO of the working directory.
///
/// Its read end is held too, so that the log survives a restart of containerd.
pub fn to_containerd(debug: bool) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("log")
        .context("open the FIFO log in the bundle")?;
    let level = if debug { Level::DEBUG } else { Level::INFO };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Mutex::new(Lossy { file, lost: 0 }))
        .finish()
        .with(sandbox::levels::levels(level))
        .init();
    Ok(())
}
