//! Opening the host's ends so that neither a late nor a departed peer loses or ends anything.

use super::Endpoint;
use crate::error::{Error, Result};
use crate::host::blocking::blocking;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// How long the reader of an output FIFO may take to open it.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// Standard input.
#[derive(Debug)]
pub enum Source {
    /// A FIFO, by readiness.
    Fifo(pipe::Receiver),
    /// Anything else, on tokio's blocking threads.
    File(tokio::fs::File),
}

/// Keeps a FIFO's write end open, so that standard input does not end before its writer has come,
/// nor when it goes away without having said that it was the last.
#[derive(Debug)]
pub struct StdinHold {
    _write_end: Option<File>,
}

impl Source {
    /// Opens the endpoint; `None` if there is none.
    ///
    /// # Errors
    /// The path can't be opened; it is named.
    pub async fn open(endpoint: Endpoint) -> Result<Option<(Self, StdinHold)>> {
        let path = match endpoint {
            Endpoint::None => return Ok(None),
            Endpoint::File(file) => return Ok(Some(Self::of_file(file))),
            Endpoint::Pipe(end) => {
                let receiver = pipe::Receiver::from_owned_fd(end);
                let receiver = receiver.map_err(Error::system("watch a pipe"))?;
                return Ok(Some((Self::Fifo(receiver), StdinHold { _write_end: None })));
            }
            Endpoint::Path(path) | Endpoint::Append(path) => path,
        };
        let named = path.clone();
        blocking("open standard input", &named, move || Self::open_path(&path).map(Some)).await
    }

    fn open_path(path: &Path) -> Result<(Self, StdinHold)> {
        let failed = || Error::path("open standard input", path);
        // Non-blocking, the read end of a FIFO opens without a writer, and the write end then has a reader.
        let file = nonblocking().read(true).open(path).map_err(failed())?;
        if !is_fifo(&file).map_err(failed())? {
            return Ok(Self::of_file(file));
        }
        let hold = nonblocking().write(true).open(path).map_err(failed())?;
        let receiver = pipe::Receiver::from_file(file).map_err(failed())?;
        Ok((Self::Fifo(receiver), StdinHold { _write_end: Some(hold) }))
    }

    fn of_file(file: File) -> (Self, StdinHold) {
        (Self::File(tokio::fs::File::from_std(file)), StdinHold { _write_end: None })
    }

    /// Reads what there is, at least one byte; 0 at the end.
    ///
    /// # Errors
    /// As `read(2)`.
    pub async fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Fifo(fifo) => fifo.read(block).await,
            Self::File(file) => file.read(block).await,
        }
    }
}

/// Standard output or error.
#[derive(Debug)]
pub enum Sink {
    /// A FIFO, by readiness, and its read end: a reader may go away and come back.
    Fifo(pipe::Sender, File),
    /// A pipe, by readiness.
    Pipe(pipe::Sender),
    /// Anything else, on tokio's blocking threads.
    File(tokio::fs::File),
}

impl Sink {
    /// Opens the endpoint; `None` if there is none. Waits for a FIFO's reader: what were written before
    /// there is one would be lost if the process ended first.
    ///
    /// # Errors
    /// The path can't be opened, or there is no reader; it is named.
    pub async fn open(endpoint: Endpoint) -> Result<Option<Self>> {
        let (path, make) = match endpoint {
            Endpoint::None => return Ok(None),
            Endpoint::File(file) => return Ok(Some(Self::File(tokio::fs::File::from_std(file)))),
            Endpoint::Pipe(end) => {
                let sender = pipe::Sender::from_owned_fd(end);
                return Ok(Some(Self::Pipe(sender.map_err(Error::system("watch a pipe"))?)));
            }
            Endpoint::Path(path) => (path, false),
            Endpoint::Append(path) => (path, true),
        };
        let named = path.clone();
        let file = blocking("open the output", &path, move || {
            open_file(&named, make).map_err(Error::path("open the output", named))
        });
        let _writer = match file.await? {
            Output::File(file) => return Ok(Some(Self::File(tokio::fs::File::from_std(file)))),
            Output::Fifo(writer) => writer,
        };
        let (write_end, read_end) = open_with_reader(&path).await?;
        let failed = Error::path("open the output", &path);
        let sender = pipe::Sender::from_file(write_end).map_err(failed)?;
        Ok(Some(Self::Fifo(sender, read_end)))
    }

    /// Writes all of `block`, counting what is handed over.
    ///
    /// # Errors
    /// As `write(2)`.
    pub async fn write_all(&mut self, mut block: &[u8], progress: &AtomicU64) -> io::Result<()> {
        while !block.is_empty() {
            let written = match self {
                Self::Fifo(pipe, _) | Self::Pipe(pipe) => pipe.write(block).await?,
                Self::File(file) => file.write(block).await?,
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            progress.fetch_add(written as u64, Ordering::Relaxed);
            block = &block[written..];
        }
        Ok(())
    }

    /// Makes sure that all is written, and closes.
    ///
    /// # Errors
    /// As `write(2)`.
    pub async fn finish(self) -> io::Result<()> {
        match self {
            Self::Fifo(..) | Self::Pipe(_) => Ok(()),
            Self::File(mut file) => file.flush().await,
        }
    }
}

/// What is at the path of an output.
enum Output {
    File(File),
    /// With a write end, if one had to be opened to find out: its reader would see the end if it were closed first.
    Fifo(Option<File>),
}

/// A file to append to, made if `make` says so: where a FIFO is missing, a file would grow that nobody reads.
fn open_file(path: &Path, make: bool) -> io::Result<Output> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_fifo() => return Ok(Output::Fifo(None)),
        Err(error) if !make => return Err(error),
        _ => {}
    }
    if make && let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    open_to_append(path, make)
}

/// What has been put there meanwhile may be a FIFO, for whose reader nobody is to wait here.
fn open_to_append(path: &Path, make: bool) -> io::Result<Output> {
    let file = match nonblocking().append(true).create(make).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let is_fifo = std::fs::metadata(path)?.file_type().is_fifo();
            return if is_fifo { Ok(Output::Fifo(None)) } else { Err(error) };
        }
        Err(error) => return Err(error),
    };
    if is_fifo(&file)? {
        return Ok(Output::Fifo(Some(file)));
    }
    // Of a terminal it would be everybody's who has it open.
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(Output::File(file))
}

/// Both ends of a FIFO that has a reader, the write end first. Asked again and again: a thread in a blocking `open(2)`
/// could not be called back.
async fn open_with_reader(path: &Path) -> Result<(File, File)> {
    let end = Instant::now() + READER_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let named = path.to_owned();
        let ends = blocking("open the output", path, move || {
            open_ends(&named).map_err(Error::path("open the output", named))
        });
        if let Some(ends) = ends.await? {
            return Ok(ends);
        }
        if Instant::now() > end {
            let error = io::Error::new(io::ErrorKind::TimedOut, "nobody has opened it to read");
            return Err(Error::path("open the output", path)(error));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// None: there is no reader.
fn open_ends(path: &Path) -> io::Result<Option<(File, File)>> {
    match nonblocking().write(true).open(path) {
        Ok(write_end) => Ok(Some((write_end, nonblocking().read(true).open(path)?))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn nonblocking() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options
}

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::io::Write as _;

    #[test]
    fn a_fifo_that_is_put_where_a_file_was_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let open = || open_to_append(&path, true).unwrap();
        let Output::File(mut file) = open() else { panic!("it is a file") };
        file.write_all(b"1").unwrap();
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "{flags:?}");
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(matches!(open(), Output::Fifo(None)));
        let _reader = nonblocking().read(true).open(&path).unwrap();
        assert!(matches!(open(), Output::Fifo(Some(_))));
        std::fs::remove_file(&path).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(open_to_append(&path, true).is_err(), "a socket is no output");
    }
}
