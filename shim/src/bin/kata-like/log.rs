//! `--log`, `--log-format` and `--debug`, in the shapes of runc's log (logrus), which callers read.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::writer::{MakeWriter, OptionalWriter};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Where to log, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Log to this file instead of standard error
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Shape of the log's lines
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// Log everything
    #[arg(long, global = true)]
    debug: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Arguments {
    /// Begins to log. Without `--log`, to the file `otherwise`, up to a length, or to standard error what is at least a
    /// warning.
    pub(crate) fn begin(&self, otherwise: Option<&Path>) -> Result<()> {
        let file = match (self.log.as_deref(), otherwise) {
            (Some(path), _) => Some(Appender::new(path, u64::MAX)?),
            (None, Some(path)) => Some(Appender::new(path, MOST)?),
            (None, None) => None,
        };
        let level = match (self.debug, &file) {
            (true, _) => Level::DEBUG,
            (false, Some(_)) => Level::INFO,
            (false, None) => Level::WARN,
        };
        let levels = sandbox::levels::levels(level);
        let builder = tracing_subscriber::fmt()
            .with_max_level(level)
            // Standard error may be the container's.
            .log_internal_errors(false)
            .event_format(Logrus(self.log_format));
        let begun = match file {
            Some(file) => builder.with_writer(file).finish().with(levels).try_init(),
            None => builder.with_writer(std::io::stderr).finish().with(levels).try_init(),
        };
        begun.map_err(|error| anyhow::anyhow!("begin to log: {error}"))
    }

    /// Says why the command failed: in the log, and in any case on standard error.
    pub(crate) fn fatal(&self, error: &anyhow::Error) {
        use std::io::Write as _;
        let message = chain(error);
        let line = line(self.log_format, Level::ERROR, &message);
        let logged = self
            .log
            .as_deref()
            .map(|path| append(path).and_then(|mut file| Ok(file.write_all(line.as_bytes())?)));
        let said = match logged {
            Some(Ok(())) => format!("{message}\n"),
            Some(Err(error)) => format!("{message}\n{error:#}\n"),
            None => line,
        };
        // Where nobody reads it there is nobody to tell.
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
}

/// Longest log that nobody has asked for, bytes: it is in the container's directory, and so in memory.
const MOST: u64 = 64 << 20;

/// What is said in place of what would be longer.
const FULL: &str = "the log is full: what comes after is left out";

/// A log that is opened for each line: nothing is held open for a container's life, and it may be moved away.
struct Appender {
    path: PathBuf,
    most: u64,
    /// It was said that it is.
    full: AtomicBool,
}

impl Appender {
    /// Takes what makes the file no longer than `most` bytes, and a line more.
    fn new(path: &Path, most: u64) -> Result<Self> {
        append(path)?;
        Ok(Self { path: std::path::absolute(path)?, most, full: AtomicBool::new(false) })
    }

    fn is_full(&self, mut file: &File) -> bool {
        let full = file.metadata().is_ok_and(|file| file.len() >= self.most);
        if full && !self.full.swap(true, Ordering::Relaxed) {
            // Where it can't be written, nothing else can.
            let _ = file.write_all(line(Format::Text, Level::WARN, FULL).as_bytes());
        }
        full
    }
}

impl<'a> MakeWriter<'a> for Appender {
    type Writer = OptionalWriter<File>;

    fn make_writer(&'a self) -> Self::Writer {
        match append(&self.path) {
            Ok(file) if !self.is_full(&file) => OptionalWriter::some(file),
            _ => OptionalWriter::none(),
        }
    }
}

fn append(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.with_context(|| format!("open the log {}", path.display()))
}

/// Error and causes in one line. A cause that its error has printed already is left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// One line as logrus writes it.
fn line(format: Format, level: Level, message: &str) -> String {
    let level = match level {
        Level::WARN => "warning".to_owned(),
        level => level.as_str().to_lowercase(),
    };
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    match format {
        Format::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        Format::Json => {
            let time = time.to_string();
            format!("{}\n", serde_json::json!({ "level": level, "msg": message, "time": time }))
        }
    }
}

/// Formats what the library traces.
struct Logrus(Format);

impl<S, N> FormatEvent<S, N> for Logrus
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        writer.write_str(&line(self.0, *event.metadata().level(), &message.0))
    }
}

/// The message of an event, with its fields after it.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => format!("{value:?}"),
            name => format!(" {name}={value:?}"),
        };
        self.0.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_moved_away_goes_on_in_a_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Appender::new(&path, u64::MAX).unwrap();
        log.make_writer().write_all(b"a").unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        log.make_writer().write_all(b"b").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"b");
        assert!(Appender::new(&directory.path().join("no/where"), 1).is_err());
        std::fs::remove_dir_all(directory.path()).unwrap();
        log.make_writer().write_all(b"lost").unwrap();
    }

    #[test]
    fn a_log_that_is_full_says_so_once_and_grows_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Appender::new(&path, 100).unwrap();
        for _ in 0..100 {
            log.make_writer().write_all(b"twenty bytes of log\n").unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("twenty").count(), 5, "{text}");
        assert!(text.lines().last().unwrap().contains(FULL) && text.lines().count() == 6, "{text}");
    }

    #[test]
    fn lines_are_shaped_as_logrus_shapes_them() {
        let text = line(Format::Text, Level::WARN, "a \"b\"");
        assert!(text.starts_with("time=\"2"), "{text}");
        assert!(text.ends_with(" level=warning msg=\"a \\\"b\\\"\"\n"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&line(Format::Json, Level::ERROR, "x\ny")).unwrap();
        assert_eq!((&json["level"], &json["msg"]), (&"error".into(), &"x\ny".into()));
    }
}
