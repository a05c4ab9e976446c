//! Runs of the tests' program in labs: each asks for a test, tells how it ended, and asks again.

use super::queue::Queue;
use crate::{build, lab};
use ::lab::client::Client;
use ::lab::machine::{Lab, Purpose};
use ::lab::wire::Exec;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

const PROGRAM: &str = "/run/lab/e2e";
const ARTIFACTS: &str = "/tmp/e2e-artifacts";
/// How often one lab may go away, or the program in it, before that is no test's fault.
const TRIES: u32 = 3;
/// Longer than any test may take: a lab that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(1200);

/// How many times as long, where all tests run; as the deadline of the longest has it.
const LONGER: u32 = 4;

/// What decides how long the program may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How many containers a test of many makes.
    pub many: u32,
    /// Whether all tests run, and so those that take long.
    pub all: bool,
}

/// One run over the tests of a queue.
pub struct Round<'a> {
    program: &'a Path,
    argv: Vec<String>,
    silence: Duration,
    purpose: Purpose,
    queue: &'a Queue,
    disk: Option<PathBuf>,
    folders: Vec<(PathBuf, &'static str)>,
}

impl<'a> Round<'a> {
    /// `program` is the tests' own, `argv` its arguments.
    pub fn new(program: &'a Path, argv: Vec<String>, patience: Patience, queue: &'a Queue) -> Self {
        let asks = [PROGRAM, "--ask", "--artifacts", ARTIFACTS].map(str::to_owned);
        let argv = asks.into_iter().chain(argv).collect();
        let purpose = if patience.all { Purpose::Release } else { Purpose::Change };
        let times = if patience.all { LONGER } else { 1 };
        // A test of many says nothing until it ends: 6 s for each, as its own deadline has it.
        let silence = SILENCE * times + Duration::from_secs(6) * patience.many;
        Self { program, argv, silence, purpose, queue, disk: None, folders: Vec::new() }
    }

    /// Gives each lab this disk.
    pub fn attach(&mut self, disk: PathBuf) {
        self.disk = Some(disk);
    }

    /// Gives each lab this folder, at that path.
    pub fn put(&mut self, from: PathBuf, to: &'static str) {
        self.folders.push((from, to));
    }

    /// Runs all tests in these labs, side by side.
    ///
    /// # Errors
    /// When a lab can't be brought up, or goes away again and again.
    pub fn run_in(&self, labs: &[Lab]) -> Result<()> {
        std::thread::scope(|scope| {
            let running: Vec<_> = labs.iter().map(|lab| scope.spawn(|| self.lab(lab))).collect();
            running.into_iter().map(build::joined).fold(Ok(()), Result::and)
        })
    }

    /// Runs tests in a lab until none is left: a test that takes the lab with it has failed, the others go on in
    /// a new one.
    fn lab(&self, lab: &Lab) -> Result<()> {
        for _ in 0..TRIES {
            let client = self.prepare(lab)?;
            let Some((test, error)) = self.tests(&client)? else { return Ok(()) };
            let gone = client.output(&["true"]).is_err();
            let said = if gone { lab.said() } else { String::new() };
            let why = vec![format!("failed: {test}: {error:#}"), said];
            self.queue.ended(false, &format!("{test} ... FAILED with the lab"), &why);
            if gone {
                lab.down()?;
            }
            if self.queue.is_empty() {
                return Ok(());
            }
        }
        bail!("{TRIES} times a test took the lab, or the tests' program, with it")
    }

    /// Brings the lab up, with the product and the tests in it.
    fn prepare(&self, lab: &Lab) -> Result<Client> {
        let client = lab::up(lab, self.purpose)?;
        lab::install(&client)?;
        self.disk.iter().try_for_each(|disk| lab.attach(disk))?;
        client.put(&[(self.program, Path::new(PROGRAM))])?;
        let folders = self.folders.iter().map(|(from, to)| (&**from, Path::new(*to)));
        client.put(&folders.collect::<Vec<_>>())?;
        Ok(client)
    }

    /// Feeds the program in this lab; the test that it did not end, if there is one, and why.
    fn tests(&self, client: &Client) -> Result<Option<(String, anyhow::Error)>> {
        let (asks, asked) = mpsc::channel();
        let mut watched = Watched::new(self.queue, asks);
        watched.next();
        let exec = Exec { argv: self.argv.clone(), ..Exec::default() };
        let stdin = Box::new(Asked { lines: asked, rest: Vec::new() });
        let ended = client.exec_watched(exec, self.silence, Some(stdin), &mut watched);
        match (watched.running.take(), ended) {
            (None, Ok(0)) => Ok(None),
            (Some(test), Ok(status)) => {
                let said = watched.said.join("\n");
                Ok(Some((test, anyhow::anyhow!("the program ended ({status}): {said}"))))
            }
            (Some(test), Err(error)) => Ok(Some((test, error))),
            (None, Ok(status)) => bail!("the tests' program ended with {status}"),
            (None, Err(error)) => Err(error).context("after the last test"),
        }
    }
}

/// Fetches the logs that failed tests left in a lab, if any did.
pub fn keep_artifacts(lab: &Lab) {
    let kept = build::target_dir().join("e2e-artifacts");
    let fetch = || lab.client()?.get(Path::new(ARTIFACTS), &kept);
    match fetch() {
        Ok(()) => println!("[end to end] logs of what failed: {}", kept.display()),
        Err(error) => println!("[end to end] a lab's logs could not be fetched: {error:#}"),
    }
}

/// The program's standard input: the tests that it is to run.
struct Asked {
    lines: Receiver<String>,
    rest: Vec<u8>,
}

impl Read for Asked {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty() {
            let Ok(line) = self.lines.recv() else { return Ok(0) };
            self.rest = format!("{line}\n").into_bytes();
        }
        let n = self.rest.len().min(into.len());
        into[..n].copy_from_slice(&self.rest[..n]);
        self.rest.drain(..n);
        Ok(n)
    }
}

/// The program's standard output: a verdict ends a test and brings the next.
struct Watched<'a> {
    queue: &'a Queue,
    /// None once there is no further test.
    asks: Option<Sender<String>>,
    running: Option<String>,
    /// What the running test has said.
    said: Vec<String>,
    line: Vec<u8>,
}

impl<'a> Watched<'a> {
    fn new(queue: &'a Queue, asks: Sender<String>) -> Self {
        Self { queue, asks: Some(asks), running: None, said: Vec::new(), line: Vec::new() }
    }

    fn next(&mut self) {
        self.running = self.queue.take();
        match (&self.running, &self.asks) {
            // A program that is gone is seen by its end.
            (Some(test), Some(asks)) => drop(asks.send(test.clone())),
            _ => self.asks = None,
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        let verdict = self.running.as_deref().and_then(|test| verdict(&line, test));
        match verdict {
            Some(passed) => {
                self.queue.ended(passed, &line, &std::mem::take(&mut self.said));
                self.next();
            }
            None => self.said.push(line),
        }
    }
}

/// Whether a test passed, by `1.7 run::echoes ... ok (2.5 s)`.
fn verdict(line: &str, test: &str) -> Option<bool> {
    let verdict = line.strip_prefix(test)?.strip_prefix(" ... ")?;
    let passed = verdict.starts_with("ok (");
    (passed || verdict.starts_with("FAILED (")).then_some(passed)
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                byte => self.line.push(byte),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::Count;

    #[test]
    fn a_verdict_ends_a_test_and_brings_the_next() {
        let queue = Queue::new(vec!["1.7 a".into(), "1.7 b".into()]);
        let (asks, asked) = mpsc::channel();
        let mut watched = Watched::new(&queue, asks);
        let mut asked = Asked { lines: asked, rest: Vec::new() };
        watched.next();
        let mut read = [0; 4];
        assert_eq!(asked.read(&mut read).unwrap(), 4);
        assert_eq!(asked.read(&mut read).unwrap(), 2, "{read:?}");
        watched.write_all(b"1.7 b ... ok (1.0 s)\n1.7 a ... ok\n1.7 a ... o").unwrap();
        assert_eq!(queue.count(), Count::default());
        watched.write_all(b"k (2.5 s)\nfailed: 1.7 b: why\n1.7 b ... FAILED (1.0 s)\n").unwrap();
        assert_eq!(queue.count(), Count { passed: 1, failed: 1 });
        assert_eq!(queue.failures(), ["failed: 1.7 b: why"]);
        let mut rest = Vec::new();
        asked.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"1.7 b\n");
    }

    #[test]
    fn a_test_that_has_not_ended_is_known() {
        let queue = Queue::new(vec!["1.7 a".into()]);
        let (asks, _asked) = mpsc::channel();
        let mut watched = Watched::new(&queue, asks);
        watched.next();
        watched.write_all(b"words\n").unwrap();
        assert_eq!(watched.running.as_deref(), Some("1.7 a"));
        assert_eq!(watched.said, ["words"]);
    }
}
