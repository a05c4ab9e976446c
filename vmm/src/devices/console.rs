//! The log of the serial console: a file of bounded size, written by one thread, fed by another.
//!
//! A vCPU that prints only appends to a buffer in memory ([`ConsoleInput`]); [`ConsoleLog`] moves
//! it to the file. What the guest prints faster than that is dropped and counted: a guest can't
//! fill the disk, wait for it, or send escape sequences to the terminal of whoever reads the log.

use crate::exit::ExitNotice;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Most bytes that wait for the file.
const BUFFER_MAX: usize = 64 << 10;
/// How much may wait before the writer is woken although no line has ended.
const WAKE_AT: usize = 4 << 10;
/// Longest log. When it is full, what lies between the head and the last [`TAIL_MIN`] bytes goes.
const FILE_MAX: u64 = 1 << 20;
/// The first part of the log, which is always kept.
const HEAD: u64 = 512 << 10;
/// The least that is kept of the end.
const TAIL_MIN: u64 = 252 << 10;
/// More than the notes on what was left out and dropped.
const NOTES_MAX: u64 = 256;
// A log that was just shortened has room for all that can wait, four characters for each byte.
const _: () = assert!(HEAD + TAIL_MIN + NOTES_MAX + 4 * BUFFER_MAX as u64 <= FILE_MAX);
/// How much of a line is looked at for the word of a kernel's panic.
const LINE_MAX: usize = 64;

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    dropped: u64,
    woken: bool,
}

struct Shared {
    buffer: Mutex<Buffer>,
    wake: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the serial port writes to: never blocks, never fails.
pub struct ConsoleInput {
    shared: Arc<Shared>,
    exit: Arc<ExitNotice>,
    line: Vec<u8>,
}

/// Where it goes.
pub struct ConsoleLog {
    shared: Arc<Shared>,
    file: Option<File>,
    len: u64,
}

/// Makes both ends. Without a path the output is thrown away.
///
/// # Errors
/// If the file can't be created (mode 0600, emptied if it exists, never through a symbolic link).
pub fn open(path: Option<&Path>, exit: Arc<ExitNotice>) -> io::Result<(ConsoleInput, ConsoleLog)> {
    let create = |path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    let file = path.map(create).transpose()?;
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let shared = Arc::new(Shared { buffer: Mutex::default(), wake });
    let input = ConsoleInput { shared: shared.clone(), exit, line: Vec::with_capacity(LINE_MAX) };
    Ok((input, ConsoleLog { shared, file, len: 0 }))
}

impl ConsoleInput {
    /// Notes a kernel's panic: a line that starts with these words, after the time of the log.
    fn watch_for_panic(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
            return;
        }
        let text = match self.line.iter().position(|b| *b == b']') {
            Some(end) if self.line[0] == b'[' => self.line[end + 1..].trim_ascii_start(),
            _ => &self.line[..],
        };
        if text.starts_with(b"Kernel panic") {
            self.exit.panic_seen();
        }
        self.line.clear();
    }
}

impl Write for ConsoleInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.watch_for_panic(byte);
        }
        let mut buffer = self.shared.lock();
        let room = BUFFER_MAX - buffer.bytes.len();
        let taken = bytes.len().min(room);
        buffer.bytes.extend_from_slice(&bytes[..taken]);
        buffer.dropped += (bytes.len() - taken) as u64;
        if !buffer.woken && (bytes.contains(&b'\n') || buffer.bytes.len() >= WAKE_AT) {
            buffer.woken = true;
            // Fails only at the counter's maximum, where the reader is awake anyway.
            let _ = self.shared.wake.write(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConsoleLog {
    /// Moves what waits to the file; called when the descriptor is readable, and at the end.
    pub fn drain(&mut self) {
        let _ = self.shared.wake.read();
        let (bytes, dropped) = {
            let mut buffer = self.shared.lock();
            buffer.woken = false;
            (std::mem::take(&mut buffer.bytes), std::mem::take(&mut buffer.dropped))
        };
        let mut text = escape(&bytes);
        if dropped > 0 {
            let _ = writeln!(text, "\n[{dropped} bytes of console output came too fast]");
        }
        // A full disk costs the log, not the machine.
        if !text.is_empty() && self.append(text.as_bytes()).is_err() {
            self.file = None;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.len + bytes.len() as u64 > FILE_MAX {
            self.len = drop_middle(file, self.len)?;
        }
        file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl AsFd for ConsoleLog {
    /// Readable when output waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the returned borrow is tied to.
        unsafe { BorrowedFd::borrow_raw(self.shared.wake.as_raw_fd()) }
    }
}

/// Shortens a file of `len` bytes to its head, a note and its last [`TAIL_MIN`] bytes.
fn drop_middle(file: &File, len: u64) -> io::Result<u64> {
    let tail_start = len.saturating_sub(TAIL_MIN).max(HEAD.min(len));
    let mut tail = vec![0; (len - tail_start) as usize];
    file.read_exact_at(&mut tail, tail_start)?;
    let head = HEAD.min(len);
    let mut kept = b"\n[console output left out here: the log is bounded]\n".to_vec();
    kept.extend(tail);
    file.set_len(head)?;
    file.write_all_at(&kept, head)?;
    Ok(head + kept.len() as u64)
}

/// Printable ASCII, newlines and tabs as they are, carriage returns gone, the rest as `\xNN`.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' | b'\t' | b' '..=b'~' => text.push(byte as char),
            b'\r' => {}
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::control::ExitReason;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    struct Fixture {
        path: PathBuf,
        exit: Arc<ExitNotice>,
        input: ConsoleInput,
        log: ConsoleLog,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let name = format!("kata-like-console-test-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let exit = Arc::new(ExitNotice::new().unwrap());
            let (input, log) = open(Some(&path), exit.clone()).unwrap();
            Self { path, exit, input, log }
        }

        fn print(&mut self, bytes: &[u8]) -> String {
            self.input.write_all(bytes).unwrap();
            self.log.drain();
            std::fs::read_to_string(&self.path).unwrap()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn terminal_escapes_do_not_reach_the_log() {
        let mut console = Fixture::new("escape");
        let text = console.print(b"a\tb\r\n\x1b[2J\x07\xff\x00~\n");
        assert_eq!(text, "a\tb\n\\x1b[2J\\x07\\xff\\x00~\n");
        let mode = std::fs::metadata(&console.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_flood_leaves_the_beginning_and_the_end_in_a_bounded_file() {
        let mut console = Fixture::new("flood");
        console.print(b"the first line\n");
        for i in 0..60_000 {
            console.input.write_all(format!("{i:049}\n").as_bytes()).unwrap();
            console.log.drain();
        }
        let text = console.print(b"the last line\n");
        assert!(text.len() as u64 <= FILE_MAX, "{}", text.len());
        assert!(text.starts_with("the first line\n") && text.ends_with("the last line\n"));
        assert!(text.contains("left out here"));
        assert!(text.contains(&format!("{:049}\n", 60_000 - TAIL_MIN / 50 + 2)));
    }

    #[test]
    fn a_full_buffer_of_escaped_bytes_does_not_make_the_log_too_long() {
        let mut console = Fixture::new("escaped");
        for _ in 0..20 {
            // More than the buffer takes, so that there is a note on what was dropped as well.
            let text = console.print(&vec![0xff; BUFFER_MAX + 1]);
            assert!(text.len() as u64 <= FILE_MAX, "{}", text.len());
        }
    }

    #[test]
    fn a_writer_that_is_never_drained_neither_blocks_nor_grows() {
        let mut console = Fixture::new("stuck");
        for _ in 0..100 {
            console.input.write_all(&[b'x'; 10_000]).unwrap();
        }
        assert_eq!(console.input.shared.lock().bytes.len(), BUFFER_MAX);
        let text = console.print(b"");
        assert!(text.contains(&format!("[{} bytes", 1_000_000 - BUFFER_MAX)));
    }

    #[test]
    fn only_a_line_that_starts_with_a_panic_is_one() {
        for (line, panic) in [
            ("[    1.234567] Kernel panic - not syncing: x\n", true),
            ("Kernel panic - not syncing: x\n", true),
            ("someone says Kernel panic\n", false),
            ("[x] the Kernel panic\n", false),
            ("]\n", false),
        ] {
            let mut console = Fixture::new("panic");
            console.print(b"ok\n");
            console.print(line.as_bytes());
            console.exit.guest_reset();
            let reason = if panic { ExitReason::GuestPanic } else { ExitReason::GuestShutdown };
            assert_eq!(console.exit.reason(), Some(reason), "{line:?}");
        }
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let link = std::env::temp_dir().join(format!("kata-like-console-{}", std::process::id()));
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let exit = Arc::new(ExitNotice::new().unwrap());
        let result = open(Some(&link), exit).map(drop);
        std::fs::remove_file(&link).unwrap();
        assert!(result.is_err());
    }
}
