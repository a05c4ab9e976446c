//! Lines that the guest and the helpers write, passed on to the log: short, printable, not too many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longest line passed on, bytes; the rest of it is thrown away.
const MAX_LINE: usize = 1024;

/// Most lines passed on per [`WINDOW`].
const MAX_LINES: u32 = 500;

/// See [`MAX_LINES`].
const WINDOW: Duration = Duration::from_secs(1);

/// Most bytes passed on of one stream in a sandbox's life: the log may be kept in memory (`/run`), and for long.
const MAX_TOTAL: u64 = 16 << 20;

/// What a line costs besides its text, bytes: time, level, and whose it is.
const FRAME: u64 = 128;

/// Lines kept for the report of an end.
const KEPT: usize = 30;

/// The last lines of a log, for the report of an end.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The lines.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The line that tells of a kernel panic.
    pub fn panic(&self) -> Option<String> {
        panic(&*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The first of `lines` that tells of a kernel panic, from there on.
pub fn panic<'a>(lines: impl IntoIterator<Item = &'a String>) -> Option<String> {
    lines.into_iter().find_map(|l| l.find("Kernel panic").map(|at| l[at..].to_owned()))
}

/// Passes on the lines of `stream` until it ends.
pub async fn forward(who: &str, id: &str, stream: impl AsyncRead + Unpin, tail: Tail) {
    let mut reader = BufReader::new(stream);
    let mut limit = RateLimit::new(Instant::now());
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_LINE as u64);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = printable(&line);
        if !line.ends_with(b"\n") && skip_line(&mut reader).await.is_err() {
            return;
        }
        tail.push(&text);
        let is_chatter = is_boot_chatter(&text);
        if is_chatter && !tracing::enabled!(tracing::Level::DEBUG) {
            continue;
        }
        match limit.allow(text.len(), Instant::now()) {
            Verdict::Pass => {}
            Verdict::PassAfter(lost) => {
                tracing::warn!("{who} id={id}: {lost} lines were too many and are left out");
            }
            Verdict::Last => {
                tracing::warn!("{who} id={id}: has said {MAX_TOTAL} bytes: the rest is left out");
                continue;
            }
            Verdict::Drop => continue,
        }
        if is_chatter {
            tracing::debug!("{who} id={id}: {text}");
        } else {
            tracing::info!("{who} id={id}: {text}");
        }
    }
}

/// The lines of a piece of log, short and printable.
pub fn lines(text: &[u8]) -> impl Iterator<Item = String> {
    text.split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| printable(&line[..line.len().min(MAX_LINE)]))
}

/// Whether a line is what every guest's kernel says while it boots: that would be most of the log.
fn is_boot_chatter(line: &str) -> bool {
    const TROUBLE: [&str; 8] = [
        "panic",
        "BUG",
        "Oops",
        "Call Trace",
        "WARNING",
        "Out of memory",
        "segfault",
        // A call that a container's seccomp profile logs, or kills for (AUDIT_SECCOMP).
        "type=1326",
    ];
    line.starts_with("kernel: ") && !TROUBLE.iter().any(|word| line.contains(word))
}

/// Throws away the rest of a line.
async fn skip_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<()> {
    loop {
        let block = reader.fill_buf().await?;
        if block.is_empty() {
            return Ok(());
        }
        let end = block.iter().position(|&b| b == b'\n');
        let used = end.map_or(block.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// A line without what a terminal would obey.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let keep = |c: char| if c.is_control() && c != '\t' { '?' } else { c };
    text.trim_end_matches(['\n', '\r']).chars().map(keep).collect()
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    PassAfter(u64),
    /// The first that is beyond [`MAX_TOTAL`].
    Last,
    Drop,
}

struct RateLimit {
    since: Instant,
    passed: u32,
    dropped: u64,
    left: u64,
}

impl RateLimit {
    fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, dropped: 0, left: MAX_TOTAL }
    }

    fn allow(&mut self, length: usize, now: Instant) -> Verdict {
        if self.left == 0 {
            return Verdict::Drop;
        }
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.passed) = (now, 0);
        }
        if self.passed == MAX_LINES {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.passed += 1;
        self.left = self.left.saturating_sub(length as u64 + FRAME);
        if self.left == 0 {
            return Verdict::Last;
        }
        match std::mem::take(&mut self.dropped) {
            0 => Verdict::Pass,
            lost => Verdict::PassAfter(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn terminal_escapes_are_not_passed_on() {
        assert_eq!(printable(b"\x1b[31mred\r\n"), "?[31mred");
    }

    #[test]
    fn the_kernels_boot_is_chatter_and_its_trouble_is_not() {
        assert!(is_boot_chatter("kernel: [    0.2] NET: Registered PF_VSOCK protocol family"));
        assert!(!is_boot_chatter("kernel: [    9.2] Kernel panic - not syncing: why"));
        assert!(!is_boot_chatter("agent: INFO ready"));
    }

    #[test]
    fn a_flood_is_cut_and_the_cut_is_told() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let passed = (0..MAX_LINES + 5).filter(|_| limit.allow(9, start) == Verdict::Pass).count();
        assert_eq!(passed as u32, MAX_LINES);
        assert_eq!(limit.allow(9, start + WINDOW), Verdict::PassAfter(5));
    }

    #[test]
    fn what_goes_on_for_ever_is_cut_for_good_and_that_is_told_once() {
        let mut now = Instant::now();
        let mut limit = RateLimit::new(now);
        let (mut bytes, mut lasts) = (0, 0);
        for _ in 0..2 * MAX_TOTAL / MAX_LINE as u64 {
            now += WINDOW / MAX_LINES;
            match limit.allow(MAX_LINE, now) {
                Verdict::Pass | Verdict::PassAfter(_) => bytes += MAX_LINE as u64,
                Verdict::Last => lasts += 1,
                Verdict::Drop => {}
            }
        }
        assert!(
            bytes > MAX_TOTAL - 2 * FRAME * MAX_TOTAL / MAX_LINE as u64 && bytes <= MAX_TOTAL,
            "{bytes}"
        );
        assert_eq!(lasts, 1);
    }

    #[test]
    fn lines_of_nothing_are_no_way_to_a_longer_log() {
        let mut now = Instant::now();
        let mut limit = RateLimit::new(now);
        let mut lines = 0;
        while !matches!(limit.allow(0, now), Verdict::Last) {
            now += WINDOW / MAX_LINES;
            lines += 1;
        }
        assert!(lines <= MAX_TOTAL / FRAME, "{lines}");
    }

    /// What is logged at all, by the level.
    #[derive(Clone, Default)]
    struct Counter(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn chatter_is_cut_like_all_else_and_costs_nothing_where_it_is_not_logged() {
        let flood =
            "kernel: [    0.2] NET: x\n".repeat(3 * MAX_LINES as usize) + "agent: INFO ready\n";
        for (level, most) in [(Level::DEBUG, MAX_LINES as usize * 2), (Level::INFO, 1)] {
            let logged = Counter::default();
            let writer = logged.clone();
            let log = tracing_subscriber::fmt()
                .with_max_level(level)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            let guard = tracing::subscriber::set_default(log);
            forward("guest", "s", flood.as_bytes(), Tail::default()).await;
            drop(guard);
            let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
            let lines = text.lines().count();
            assert!((1..=most).contains(&lines), "{lines} at {level}");
            assert!(level == Level::DEBUG || text.contains("agent: INFO ready"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_the_next_is_whole() {
        let mut text = vec![b'x'; 5 * MAX_LINE];
        text.extend_from_slice(b"\nKernel panic - not syncing: why\n");
        let tail = Tail::default();
        forward("guest", "s", &text[..], tail.clone()).await;
        assert_eq!(tail.panic().as_deref(), Some("Kernel panic - not syncing: why"));
        assert_eq!(tail.0.lock().unwrap()[0].len(), MAX_LINE);
    }
}
