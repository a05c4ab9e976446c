//! Commands with a deadline: a test can fail, never hang.

use anyhow::{Context as _, Result, bail};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long enough for a container's whole life in a lab that a slow machine emulates beside another: a test that fails
/// is to have failed, not to have been late.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// The exit code; 128 + number when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Standard output as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches(['\n', '\r']).to_owned()
    }

    /// Itself, when the exit code is as expected.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code != code {
            bail!(
                "exit code {} instead of {code}; stdout {:?}, stderr {:?}",
                self.code,
                tail(&self.text()),
                tail(&self.stderr)
            );
        }
        Ok(self)
    }

    /// Fails unless the words are on standard error.
    pub fn expect_stderr(self, words: &str) -> Result<Self> {
        if !self.stderr.contains(words) {
            bail!("standard error lacks {words:?}: {:?}", self.stderr);
        }
        Ok(self)
    }

    /// Standard output as text, when the words are on standard error.
    pub fn expect_stderr_of(self, words: &str) -> Result<String> {
        let text = self.text();
        self.expect_stderr(words).map(|_| text)
    }

    /// Itself, when the command failed and its standard error contains each of `words`.
    pub fn expect_error(self, words: &[&str]) -> Result<Self> {
        if self.code == 0 {
            bail!("succeeded, and should have failed; stdout {:?}", tail(&self.text()));
        }
        match words.iter().find(|word| !self.stderr.contains(**word)) {
            Some(word) => bail!("the error does not name {word:?}: {:?}", tail(&self.stderr)),
            None => Ok(self),
        }
    }
}

fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(800);
    text.chars().skip(skip).collect()
}

/// A started command whose output is being read.
pub struct Running {
    child: Child,
    name: String,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Starts it; `stdin` is written by a thread of its own and then closed.
    pub fn start(command: &mut Command, stdin: Vec<u8>) -> Result<Self> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let mut pipe = child.stdin.take().context("stdin")?;
        // A command that ends without reading its input is no fault of the test's.
        std::thread::spawn(move || drop(pipe.write_all(&stdin)));
        let stdout = collect(child.stdout.take().context("stdout")?);
        let stderr = collect(child.stderr.take().context("stderr")?);
        Ok(Self { child, name, stdout, stderr })
    }

    /// Waits for its end; kills it at the deadline, and that is an error.
    pub fn finish(mut self, deadline: Duration) -> Result<Output> {
        let Some(status) = wait_until(&mut self.child, Instant::now() + deadline)? else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            bail!("{} did not end within {deadline:?}", self.name);
        };
        let stdout = self.stdout.join().unwrap_or_default();
        let stderr = self.stderr.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(Output { code: code(status), stdout, stderr })
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        Ok(nix::sys::signal::kill(pid, signal)?)
    }
}

/// Runs a command to its end, without input.
pub fn output(command: &mut Command) -> Result<Output> {
    Running::start(command, Vec::new())?.finish(DEADLINE)
}

/// Waits for a child until `end`; `None` when it still runs then.
pub fn wait_until(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks until the answer is yes, or the deadline passes: then an error that names `what`.
pub fn eventually(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if ask()? {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The exit code as a shell gives it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}
