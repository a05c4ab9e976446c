//! Messages of the libraries, to standard error.

use log::{LevelFilter, Log, Metadata, Record};
use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most messages of one process: the guest can provoke them.
const MAX_MESSAGES: u32 = 200;

struct StandardError {
    written: AtomicU32,
}

static LOGGER: StandardError = StandardError { written: AtomicU32::new(0) };

/// Sends warnings and errors to standard error.
pub(crate) fn install() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record) {
        match self.written.fetch_add(1, Ordering::Relaxed).cmp(&MAX_MESSAGES) {
            Less => eprintln!("kata-like-fs: {}", printable(&record.args().to_string())),
            Equal => {
                log::set_max_level(LevelFilter::Off);
                eprintln!("kata-like-fs: no further messages");
            }
            Greater => {}
        }
    }

    fn flush(&self) {}
}

/// Without control characters: a message may hold a name that the guest chose.
fn printable(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_escape_does_not_pass() {
        assert_eq!(super::printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
