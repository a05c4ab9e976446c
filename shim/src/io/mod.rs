//! A process's standard streams: between the owner's FIFOs or files and the guest's vsock streams.
//!
//! Nothing is lost and nothing is buffered beyond one block: who reads slowly slows the guest's writer.
//! The end of standard input goes to the guest as a half-close.

mod fifo;

use crate::error::{Error, Result};
pub use fifo::{Sink, Source, StdinHold};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// Bytes copied at a time.
const BLOCK: usize = 64 * 1024;

/// One end of a stream as its owner gave it.
#[derive(Debug, Default)]
pub enum Endpoint {
    /// Nothing: end of file, or thrown away.
    #[default]
    None,
    /// A FIFO, or a file to append to.
    Path(PathBuf),
    /// A file that is open already.
    File(File),
}

/// A process's three streams as their owner gave them. With a terminal there is no standard error.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Endpoint,
    /// Standard output, or the terminal's.
    pub stdout: Endpoint,
    /// Standard error.
    pub stderr: Endpoint,
}

/// The host's ends, open; the guest's are joined by [`OpenIo::join`].
#[derive(Debug, Default)]
pub struct OpenIo {
    stdin: Option<(Source, StdinHold)>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

/// The guest's ends.
#[derive(Debug, Default)]
pub struct GuestStreams {
    /// Standard input.
    pub stdin: Option<UnixStream>,
    /// Standard output.
    pub stdout: Option<UnixStream>,
    /// Standard error.
    pub stderr: Option<UnixStream>,
}

impl OpenIo {
    /// Opens the host's ends; waits for the readers of output FIFOs.
    ///
    /// # Errors
    /// A path can't be opened or nobody reads from it; it is named.
    pub async fn open(stdio: Stdio) -> Result<Self> {
        let stdin = Source::open(stdio.stdin)?;
        let (stdout, stderr) = tokio::join!(Sink::open(stdio.stdout), Sink::open(stdio.stderr));
        Ok(Self { stdin, stdout: stdout?, stderr: stderr? })
    }

    /// Which of the guest's ends are wanted: stdin, stdout, stderr.
    pub fn wanted(&self) -> [bool; 3] {
        [self.stdin.is_some(), self.stdout.is_some(), self.stderr.is_some()]
    }

    /// Begins to copy.
    pub fn join(self, guest: GuestStreams) -> ProcessIo {
        let io = ProcessIo::default();
        if let (Some((source, hold)), Some(stream)) = (self.stdin, guest.stdin) {
            *io.hold.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
            let task = tokio::spawn(async move {
                if let Err(error) = copy_in(source, stream).await {
                    tracing::debug!("stdin: {error}");
                }
            });
            io.input.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
        for (sink, stream) in [(self.stdout, guest.stdout), (self.stderr, guest.stderr)] {
            let (Some(sink), Some(stream)) = (sink, stream) else { continue };
            let progress = io.progress.clone();
            let task = tokio::spawn(async move {
                if let Err(error) = copy_out(stream, sink, &progress).await {
                    tracing::warn!("output of a process: {error}");
                }
            });
            io.output.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
        io
    }
}

/// Streams that are being copied. Dropped, the copying stops.
#[derive(Debug, Default)]
pub struct ProcessIo {
    hold: Mutex<Option<StdinHold>>,
    input: Mutex<Vec<JoinHandle<()>>>,
    output: Mutex<Vec<JoinHandle<()>>>,
    progress: Arc<AtomicU64>,
}

impl ProcessIo {
    /// Lets standard input end as soon as its last writer has closed it.
    pub fn close_stdin(&self) {
        drop(self.hold.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Waits until all output has been handed over, or until none has been for `patience`.
    ///
    /// Gives whether all was.
    pub async fn drained(&self, patience: Duration) -> bool {
        let tasks =
            std::mem::take(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all = true;
        for mut task in tasks {
            let mut seen = self.progress.load(Ordering::Relaxed);
            while tokio::time::timeout(patience, &mut task).await.is_err() {
                let now = self.progress.load(Ordering::Relaxed);
                if now == seen {
                    task.abort();
                    all = false;
                    break;
                }
                seen = now;
            }
        }
        all
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        for list in [&mut self.input, &mut self.output] {
            for task in list.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                task.abort();
            }
        }
    }
}

async fn copy_in(mut source: Source, mut guest: UnixStream) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let read = source.read(&mut block).await?;
        if read == 0 {
            guest.shutdown().await?;
            // Half-closed until the guest closes too, so that nothing on its way is cut off.
            while guest.read(&mut block).await? > 0 {}
            return Ok(());
        }
        guest.write_all(&block[..read]).await?;
    }
}

async fn copy_out(
    mut guest: UnixStream,
    mut sink: Sink,
    progress: &AtomicU64,
) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let read = guest.read(&mut block).await?;
        if read == 0 {
            return sink.finish().await;
        }
        sink.write_all(&block[..read], progress).await?;
    }
}

/// Reads a stream as containerd names it: empty, a path, or a URI.
///
/// # Errors
/// [`Error::Unimplemented`] for a URI of another kind than `file://` and `fifo://`.
pub fn parse_endpoint(text: &str) -> Result<Endpoint> {
    match text.split_once("://") {
        None if text.is_empty() => Ok(Endpoint::None),
        None => Ok(Endpoint::Path(text.into())),
        Some(("file" | "fifo", path)) => Ok(Endpoint::Path(path.into())),
        Some((scheme, _)) => {
            Err(Error::Unimplemented(format!("standard streams of the kind {scheme}://")))
        }
    }
}

#[cfg(test)]
mod tests;
