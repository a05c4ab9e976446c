//! The log: the agent's own lines and the kernel's, sent to the host as text.
//!
//! Nothing here waits: lines go into a bounded store, and what does not fit is counted and reported.
//! A panic is different: PID 1 takes the machine down, so the hook writes to the kernel's log, which
//! reaches the console, and to the host's stream if there is room.

use crate::io::transport::{self, Stream, Transport};
use nix::sys::socket::{MsgFlags, send};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Most lines of the agent that wait to be sent.
const MAX_LINES: usize = 1024;

/// Longest line, bytes; the rest is cut off.
const MAX_LINE: usize = 8192;

/// Bytes sent at once.
const BATCH: usize = 32 * 1024;

/// Between attempts to connect the log again.
const RECONNECT: Duration = Duration::from_secs(1);

/// The log's stream, for the panic hook; -1: none.
static STREAM: AtomicI32 = AtomicI32::new(-1);

/// Lines that wait to be sent.
#[derive(Debug, Default)]
pub struct Log {
    lines: Mutex<Lines>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: VecDeque<String>,
    lost: u64,
}

impl Log {
    fn push(&self, mut line: String) {
        let end = (0..=MAX_LINE.min(line.len())).rev().find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or(0));
        line.push('\n');
        let mut lines = self.lines();
        if lines.waiting.len() < MAX_LINES {
            lines.waiting.push_back(line);
        } else {
            lines.lost += 1;
        }
        self.more.notify_one();
    }

    /// Moves lines to `batch` until it is full.
    fn take(&self, batch: &mut String) {
        let mut lines = self.lines();
        while batch.len() < BATCH
            && let Some(line) = lines.waiting.pop_front()
        {
            batch.push_str(&line);
        }
        if lines.waiting.is_empty() && lines.lost > 0 {
            let _ = writeln!(batch, "agent: {} lines lost", lines.lost);
            lines.lost = 0;
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes [`tracing`] write to the store that is returned.
pub fn install() -> Arc<Log> {
    let log = Arc::new(Log::default());
    ToSink::log(&log).install();
    log
}

/// Makes [`tracing`] write errors, a line each, to a pipe. For a worker, which has no log.
pub fn errors_to(pipe: OwnedFd) {
    let sink = move |line: String| {
        let line = line.trim_start_matches("agent: ERROR ").to_owned() + "\n";
        let _ = nix::unistd::write(&pipe, line.as_bytes());
    };
    ToSink { level: Level::ERROR, sink: Box::new(sink) }.install();
}

/// Events as lines, from a level up. There are no spans.
struct ToSink {
    level: Level,
    sink: Box<dyn Fn(String) + Send + Sync>,
}

impl ToSink {
    fn log(log: &Arc<Log>) -> Self {
        let log = Arc::clone(log);
        Self { level: Level::INFO, sink: Box::new(move |line| log.push(line)) }
    }

    fn install(self) {
        // Fails only when there is a subscriber already, and then that one is as good.
        let _ = tracing::subscriber::set_global_default(self);
    }
}

impl Subscriber for ToSink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::from_level(self.level))
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("agent: {}", event.metadata().level()));
        event.record(&mut line);
        (self.sink)(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message, then the fields.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => format!("{value:?}"),
            name => format!("{name}={value:?}"),
        };
        // A value may come from a container; a line stays a line.
        let _ = write!(self.0, " {}", text.replace(['\n', '\r'], " "));
    }
}

/// Sends the log to the host for ever. To connect is the ready signal.
pub async fn forward(log: Arc<Log>, transport: Transport) {
    let kernel = open_kernel_log().map_err(|error| tracing::warn!(%error, "no kernel log")).ok();
    loop {
        if let Ok(stream) = transport.connect(protocol::ports::LOG).await {
            STREAM.store(stream.fd().get_ref().as_raw_fd(), Ordering::Relaxed);
            let _ = send_lines(&log, kernel.as_ref(), &stream).await;
            STREAM.store(-1, Ordering::Relaxed);
        }
        // The host went away, as it does when the guest is restored elsewhere.
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn send_lines(
    log: &Log,
    kernel: Option<&AsyncFd<OwnedFd>>,
    stream: &Stream,
) -> io::Result<()> {
    let mut end = [0];
    loop {
        let mut batch = String::new();
        log.take(&mut batch);
        let kernel_may_have_more = match kernel {
            Some(kernel) => take_kernel_lines(kernel, &mut batch)?,
            None => false,
        };
        stream.write_all(batch.as_bytes()).await?;
        if kernel_may_have_more || !batch.is_empty() {
            continue;
        }
        tokio::select! {
            () = log.more.notified() => {}
            readable = readable(kernel) => drop(readable?),
            // The host sends nothing here: this is its end.
            closed = stream.read(&mut end) => if closed? == 0 { return Ok(()) },
        }
    }
}

async fn readable(fd: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match fd {
        Some(fd) => fd.readable().await.map(drop),
        None => std::future::pending().await,
    }
}

fn open_kernel_log() -> io::Result<AsyncFd<OwnedFd>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    transport::pollable(file.into())
}

/// Moves records of the kernel's log to `batch` until it is full; whether there may be more.
fn take_kernel_lines(kernel: &AsyncFd<OwnedFd>, batch: &mut String) -> io::Result<bool> {
    let mut record = [0; MAX_LINE];
    while batch.len() < BATCH {
        let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, &mut record)?);
        match kernel.try_io(Interest::READABLE, read) {
            Ok(length) => kernel_lines(&String::from_utf8_lossy(&record[..length]), batch),
            // Records were overwritten before they were read; the next ones are there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// One record of /dev/kmsg: `level,sequence,microseconds,flags;text`, then lines of properties that
/// begin with a space.
fn kernel_lines(record: &str, batch: &mut String) {
    let Some((head, text)) = record.split_once(';') else { return };
    let microseconds: u64 = head.split(',').nth(2).and_then(|t| t.parse().ok()).unwrap_or(0);
    let (seconds, fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
        let _ = writeln!(batch, "kernel: [{seconds:5}.{fraction:06}] {line}");
    }
}

/// Says on the console and on the host's stream why PID 1 ends, and then ends it: the kernel panics.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if std::process::id() != 1 {
            return;
        }
        let text = panic.to_string().replace('\n', " ");
        // Level 3, error: shown on the console of a quiet kernel too.
        if let Ok(mut kernel) = OpenOptions::new().write(true).open("/dev/kmsg") {
            let _ = kernel.write_all(format!("<3>kata-like-agent: {text}\n").as_bytes());
        }
        let stream = STREAM.load(Ordering::Relaxed);
        if stream >= 0 {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(stream, format!("agent: PANIC {text}\n").as_bytes(), flags);
        }
        // SAFETY: ends the process at once, as the abort that follows would after more detours.
        unsafe { libc::_exit(101) }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_record_becomes_a_line_without_its_properties() {
        let mut batch = String::new();
        kernel_lines("6,339,5140900,-;NET: Registered PF_VSOCK\n SUBSYSTEM=net\n", &mut batch);
        assert_eq!(batch, "kernel: [    5.140900] NET: Registered PF_VSOCK\n");
        kernel_lines("nonsense", &mut batch);
        assert_eq!(batch.lines().count(), 1);
    }

    #[test]
    fn lines_over_the_limit_are_counted() {
        let log = Log::default();
        for _ in 0..MAX_LINES + 3 {
            log.push("x".to_owned());
        }
        let mut batch = String::new();
        log.take(&mut batch);
        assert_eq!(batch.lines().count(), MAX_LINES + 1);
        assert!(batch.ends_with("agent: 3 lines lost\n"));
        batch.clear();
        log.take(&mut batch);
        assert!(batch.is_empty());
    }

    #[test]
    fn long_lines_are_cut_and_newlines_taken_out() {
        let log = Arc::new(Log::default());
        log.push("é".repeat(MAX_LINE));
        let mut batch = String::new();
        log.take(&mut batch);
        assert!(batch.len() <= MAX_LINE + 1);
        tracing::subscriber::with_default(ToSink::log(&log), || {
            tracing::info!(name = "a\nb", "hello");
            tracing::debug!("not this");
        });
        batch.clear();
        log.take(&mut batch);
        assert_eq!(batch, "agent: INFO hello name=\"a\\nb\"\n");
    }
}
