//! A process's standard streams: between the owner's FIFOs or files and the guest's vsock streams.
//!
//! Nothing is lost and nothing is buffered beyond one block: who reads slowly slows the guest's writer.
//! The end of standard input goes to the guest as a half-close.

mod fifo;
mod logger;

use crate::error::{Error, Result};
pub use fifo::{Sink, Source, StdinHold};
pub use logger::Logger;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::task::JoinHandle;

/// Bytes copied at a time.
const BLOCK: usize = 64 * 1024;

/// One end of a stream as its owner gave it.
#[derive(Debug, Default)]
pub enum Endpoint {
    /// Nothing: end of file, or thrown away.
    #[default]
    None,
    /// A FIFO, or a file that is there.
    Path(PathBuf),
    /// A file to append to, made with its directories if it isn't there.
    Append(PathBuf),
    /// A file that is open already.
    File(File),
    /// An end of a pipe that nobody else has.
    Pipe(OwnedFd),
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
    /// A program that reads both outputs, in place of what is named above.
    pub logger: Option<Logger>,
    /// A terminal does not turn `\n` into `\r\n`: the one at which it is shown does.
    pub plain_newlines: bool,
}

/// The host's ends of the outputs, open, and that of the input; the guest's are joined by [`OpenIo::join`].
#[derive(Debug, Default)]
pub struct OpenIo {
    stdin: Endpoint,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    logger: Option<Child>,
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
    /// Opens the host's ends of the outputs; waits for the readers of FIFOs.
    ///
    /// # Errors
    /// A path can't be opened or nobody reads from it, or a logging program can't be started; it is named.
    pub async fn open(stdio: Stdio) -> Result<Self> {
        if let Some(logger) = stdio.logger {
            let started = logger.start().await?;
            return Ok(Self {
                stdin: stdio.stdin,
                stdout: Some(started.stdout),
                stderr: started.stderr,
                logger: Some(started.child),
            });
        }
        let (stdout, stderr) = tokio::join!(Sink::open(stdio.stdout), Sink::open(stdio.stderr));
        Ok(Self { stdin: stdio.stdin, stdout: stdout?, stderr: stderr?, logger: None })
    }

    /// Which of the guest's ends are wanted: stdin, stdout, stderr.
    pub fn wanted(&self) -> [bool; 3] {
        let stdin = !matches!(self.stdin, Endpoint::None);
        [stdin, self.stdout.is_some(), self.stderr.is_some()]
    }

    /// Begins to copy the outputs.
    pub fn join(self, guest: GuestStreams) -> ProcessIo {
        let io = ProcessIo::default();
        io.input().waiting = guest.stdin.map(|stream| (self.stdin, stream));
        for (sink, stream) in [(self.stdout, guest.stdout), (self.stderr, guest.stderr)] {
            let (Some(sink), Some(stream)) = (sink, stream) else { continue };
            let progress = io.progress.clone();
            let task = tokio::spawn(async move {
                if let Err(error) = copy_out(stream, sink, &progress).await {
                    tracing::warn!("output of a process: {error}");
                }
            });
            io.output().push(task);
        }
        if let Some(mut logger) = self.logger {
            // The last of the outputs: it ends when it has read them to their ends.
            io.output().push(tokio::spawn(async move {
                if let Ok(status) = logger.wait().await
                    && !status.success()
                {
                    tracing::warn!("the logging program ended with {status}");
                }
            }));
        }
        io
    }
}

/// Streams that are being copied. Dropped, the copying stops.
#[derive(Debug, Default)]
pub struct ProcessIo {
    input: Mutex<Input>,
    output: Mutex<Vec<JoinHandle<()>>>,
    progress: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Input {
    waiting: Option<(Endpoint, UnixStream)>,
    closed: bool,
    hold: Option<StdinHold>,
    task: Option<JoinHandle<()>>,
}

impl ProcessIo {
    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the host's end of the input and begins to copy it.
    ///
    /// Not before the process is started: ctr, for one, can tell that its input has ended only once it knows
    /// that the process was created, and it writes as soon as there is a reader.
    ///
    /// # Errors
    /// The path can't be opened; it is named.
    pub async fn begin_input(&self) -> Result<()> {
        let Some((endpoint, stream)) = self.input().waiting.take() else { return Ok(()) };
        let Some((source, hold)) = Source::open(endpoint).await? else { return Ok(()) };
        let mut input = self.input();
        input.hold = (!input.closed).then_some(hold);
        input.task = Some(tokio::spawn(async move {
            if let Err(error) = copy_in(source, stream).await {
                tracing::debug!("stdin: {error}");
            }
        }));
        Ok(())
    }

    /// Lets standard input end as soon as its last writer has closed it.
    pub fn close_stdin(&self) {
        let mut input = self.input();
        input.closed = true;
        input.hold = None;
    }

    /// Waits until all output has been handed over, or until none has been for `patience`.
    ///
    /// Gives whether all was.
    pub async fn drained(&self, patience: Duration) -> bool {
        let tasks = std::mem::take(&mut *self.output());
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
        let input = self.input().task.take();
        for task in self.output().drain(..).chain(input) {
            task.abort();
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
        Some(("file", path)) => Ok(Endpoint::Append(path.into())),
        Some(("fifo", path)) => Ok(Endpoint::Path(path.into())),
        Some((scheme, _)) => {
            Err(Error::Unimplemented(format!("standard streams of the kind {scheme}://")))
        }
    }
}

#[cfg(test)]
mod tests;
