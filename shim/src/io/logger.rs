//! A logging program (`binary://`) that reads a process's output: containerd's runtime v2, "Logging".
//!
//! It gets the read ends of standard output and error as descriptors 3 and 4, and closes descriptor 5 when it is
//! ready; its environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE`, its arguments are the URI's query.

use super::Sink;
use crate::error::{Error, Result};
use crate::host::blocking::blocking;
use crate::host::descriptor;
use crate::host::limits;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// How long the program may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// The program's numbers of: standard output, standard error, and what it closes when it is ready.
const NUMBERS: [RawFd; 3] = [3, 4, 5];

/// A logging program, not started yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logger {
    program: PathBuf,
    arguments: Vec<String>,
    id: String,
    namespace: String,
    terminal: bool,
}

/// A logging program that is ready.
pub(super) struct Started {
    pub(super) stdout: Sink,
    /// None with a terminal: the program reads an end at once.
    pub(super) stderr: Option<Sink>,
    pub(super) child: Child,
}

impl Logger {
    /// Reads `binary:///PROGRAM?NAME=VALUE&…`; `None` for a URI of another kind.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it names no absolute path or isn't encoded as a URI is.
    pub fn parse(uri: &str, id: &str, namespace: &str) -> Result<Option<Self>> {
        let Some(rest) = uri.strip_prefix("binary://") else { return Ok(None) };
        let (program, query) = rest.split_once('?').unwrap_or((rest, ""));
        let invalid = || Error::InvalidArgument(format!("logging program {uri:?}"));
        let program = PathBuf::from(decode(program).ok_or_else(invalid)?);
        if !program.is_absolute() {
            return Err(invalid());
        }
        let mut arguments = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            for word in [name, value] {
                arguments.push(decode(&word.replace('+', " ")).ok_or_else(invalid)?);
            }
        }
        let (id, namespace) = (id.into(), namespace.into());
        Ok(Some(Self { program, arguments, id, namespace, terminal: false }))
    }

    /// For a process with a terminal, which has no standard error.
    #[must_use]
    pub fn with_terminal(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It can't be started, or is not ready in time; it is named.
    pub(super) async fn start(&self) -> Result<Started> {
        let failed =
            |error: io::Error| Error::path("start the logging program", &self.program)(error);
        let (stdout, its_stdout) = output_pipe().map_err(failed)?;
        let (stderr, its_stderr) = output_pipe().map_err(failed)?;
        let (is_ready, its_ready) = io::pipe().map_err(failed)?;
        let given = [its_stdout, its_stderr, its_ready.into()];
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("CONTAINER_ID", &self.id)
            .env("CONTAINER_NAMESPACE", &self.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let raw = given.each_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec the closure makes system calls only; the descriptors are open.
        unsafe { command.pre_exec(move || place(raw)) };
        // After that: the numbers below the limit may all be taken.
        limits::pass_on(&mut command);
        // To execute a program on a file system that hangs waits for it.
        let named = self.program.clone();
        let spawn = move || {
            let child = command.spawn().map_err(Error::path("start the logging program", named));
            drop(given);
            child
        };
        let child = blocking("start the logging program", &self.program, spawn).await?;
        let mut is_ready = pipe::Receiver::from_owned_fd(is_ready.into()).map_err(failed)?;
        let mut nothing = [0];
        let ready = tokio::time::timeout(READY_PATIENCE, is_ready.read(&mut nothing));
        ready.await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
        Ok(Started { stdout, stderr: (!self.terminal).then_some(stderr), child })
    }
}

/// Our end and the program's.
fn output_pipe() -> io::Result<(Sink, OwnedFd)> {
    let (its, ours) = io::pipe()?;
    Ok((Sink::Pipe(pipe::Sender::from_owned_fd(ours.into())?), its.into()))
}

/// Gives the descriptors their numbers, open across exec. First out of the way of each other.
fn place(given: [RawFd; 3]) -> io::Result<()> {
    let above = NUMBERS[2] + 1;
    let mut moved = given;
    for fd in &mut moved {
        // SAFETY: a system call on a descriptor of this process.
        *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above) };
        if *fd < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (fd, number) in moved.into_iter().zip(NUMBERS) {
        descriptor::place(fd, number)?;
    }
    Ok(())
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{GuestStreams, OpenIo};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[test]
    fn a_uri_is_a_program_and_its_arguments() {
        let parse = |uri: &str| Logger::parse(uri, "c", "ns");
        let logger = parse("binary:///bin/a%20b?to=x%2Fy&flag").unwrap().unwrap();
        assert_eq!(logger.program, PathBuf::from("/bin/a b"));
        assert_eq!(logger.arguments, ["to", "x/y", "flag", ""]);
        assert_eq!(parse("file:///x").unwrap(), None);
        for wrong in ["binary://relative", "binary:///a%2", "binary:///a%zz", "binary://"] {
            assert!(parse(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }

    fn program(dir: &std::path::Path, script: &str) -> String {
        let path = crate::testing::script(dir.join("logger"), script);
        format!("binary://{}?log={}/log", path.display(), dir.display())
    }

    async fn open(uri: &str) -> Result<OpenIo> {
        let logger = Logger::parse(uri, "c1", "ns1").unwrap();
        OpenIo::open(super::super::Stdio { logger, ..Default::default() }).await
    }

    #[tokio::test]
    async fn both_outputs_reach_the_program_and_it_ends_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let script =
            "exec 5>&-; { cat <&3; cat <&4; echo $1 $CONTAINER_ID $CONTAINER_NAMESPACE; } > $2";
        let open = open(&program(dir.path(), script)).await.unwrap();
        assert_eq!(open.wanted(), [false, true, true]);
        let (stdout, mut guest_out) = UnixStream::pair().unwrap();
        let (stderr, mut guest_err) = UnixStream::pair().unwrap();
        let io =
            open.join(GuestStreams { stdin: None, stdout: Some(stdout), stderr: Some(stderr) });
        guest_out.write_all(b"out\n").await.unwrap();
        guest_err.write_all(b"err\n").await.unwrap();
        drop((guest_out, guest_err));
        assert!(io.drained(Duration::from_secs(10)).await);
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "out\nerr\nlog c1 ns1\n");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = open("binary:///nowhere/logger").await.unwrap_err().chain();
        assert!(error.contains("/nowhere/logger"), "{error}");
    }

    #[test]
    fn it_is_started_on_a_thread_that_may_hang() {
        let dir = tempfile::tempdir().unwrap();
        program(dir.path(), "exec 5>&-; cat <&3 >said");
        let (program, arguments) = ("./logger".into(), Vec::new());
        let (id, namespace) = ("c".into(), "ns".into());
        let logger = Logger { program, arguments, id, namespace, terminal: false };
        crate::io::tests::only_other_threads_are_in(dir.path(), async {
            let stdio = super::super::Stdio { logger: Some(logger), ..Default::default() };
            let open = OpenIo::open(stdio).await.unwrap();
            let (stdout, mut guest) = UnixStream::pair().unwrap();
            let io = open.join(GuestStreams { stdout: Some(stdout), ..Default::default() });
            guest.write_all(b"out").await.unwrap();
            drop(guest);
            assert!(io.drained(Duration::from_secs(10)).await);
        });
        assert_eq!(std::fs::read(dir.path().join("said")).unwrap(), b"out");
    }
}
