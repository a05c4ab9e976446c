//! Runs one command and carries its streams.

use anyhow::{Context, Result};
use lab::wire::{self, Connection, Exec, Kind};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long output of processes that outlive the command is still carried, once it is silent.
const GRACE: Duration = Duration::from_millis(150);

/// The write half of the connection, shared by the threads that carry output.
struct Output {
    stream: Mutex<Connection>,
    /// Grows with every frame; also while a write waits for a slow reader.
    progress: AtomicU64,
    writing: AtomicBool,
}

impl Output {
    fn send(&self, kind: Kind, body: &[u8]) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.writing.store(true, Ordering::SeqCst);
        let result = wire::write_frame(&mut *stream, kind, body);
        self.writing.store(false, Ordering::SeqCst);
        self.progress.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn is_quiet(&self, since: u64) -> bool {
        !self.writing.load(Ordering::SeqCst) && self.progress.load(Ordering::SeqCst) == since
    }
}

/// A started command: the child, its input, and its outputs with the frames they become.
struct Started {
    child: Child,
    stdin: Option<File>,
    outputs: Vec<(Kind, File)>,
    terminal: Option<File>,
}

/// Runs `request` and answers on `stream` until the command has ended.
pub fn run(stream: &Connection, request: &Exec) -> Result<()> {
    let mut started = start(request)?;
    let pid = Pid::from_raw(started.child.id() as i32);
    let output = Arc::new(Output {
        stream: Mutex::new(stream.try_clone()?),
        progress: AtomicU64::new(0),
        writing: AtomicBool::new(false),
    });
    let carriers: Vec<_> = started
        .outputs
        .into_iter()
        .map(|(kind, from)| {
            let output = Arc::clone(&output);
            std::thread::spawn(move || carry(from, kind, &output))
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let input = stream.try_clone()?;
    let feeder = {
        let done = Arc::clone(&done);
        let (stdin, terminal) = (started.stdin, started.terminal);
        std::thread::spawn(move || {
            feed(input, stdin, terminal.as_ref());
            // The client has gone: so does what it started.
            if !done.load(Ordering::SeqCst) {
                let _ = killpg(pid, Signal::SIGTERM);
                std::thread::sleep(Duration::from_secs(2));
                if !done.load(Ordering::SeqCst) {
                    let _ = killpg(pid, Signal::SIGKILL);
                }
            }
        })
    };
    let status = started.child.wait()?;
    done.store(true, Ordering::SeqCst);
    while carriers.iter().any(|c| !c.is_finished()) {
        let before = output.progress.load(Ordering::SeqCst);
        if wait_for(&carriers, GRACE) || output.is_quiet(before) {
            break;
        }
    }
    let code = status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(255);
    output.send(Kind::Exit, &code.to_le_bytes())?;
    let _ = stream.shutdown(Shutdown::Both);
    let _ = feeder.join();
    Ok(())
}

/// Waits until all threads have ended, at most `limit`; whether they have.
fn wait_for(threads: &[std::thread::JoinHandle<()>], limit: Duration) -> bool {
    let end = std::time::Instant::now() + limit;
    while threads.iter().any(|t| !t.is_finished()) {
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn start(request: &Exec) -> Result<Started> {
    let (program, args) = request.argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).envs(request.env.iter().map(|(k, v)| (k, v)));
    match request.tty {
        Some((rows, cols)) => start_on_terminal(command, rows, cols),
        None => start_on_pipes(command),
    }
    .with_context(|| format!("start {program}"))
}

fn start_on_pipes(mut command: Command) -> Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let file = |fd: Option<OwnedFd>| fd.map(File::from).context("a stream is missing");
    let stdin = file(child.stdin.take().map(Into::into))?;
    let stdout = file(child.stdout.take().map(Into::into))?;
    let stderr = file(child.stderr.take().map(Into::into))?;
    Ok(Started {
        child,
        stdin: Some(stdin),
        outputs: vec![(Kind::Stdout, stdout), (Kind::Stderr, stderr)],
        terminal: None,
    })
}

fn start_on_terminal(mut command: Command, rows: u16, cols: u16) -> Result<Started> {
    let pty = nix::pty::openpty(None, None)?;
    let terminal = File::from(pty.master);
    resize(&terminal, rows, cols);
    command
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave)
        .env("TERM", "xterm");
    // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    drop(command); // its copies of the terminal's slave side: with them open the output never ends
    Ok(Started {
        child,
        stdin: Some(terminal.try_clone()?),
        outputs: vec![(Kind::Stdout, terminal.try_clone()?)],
        terminal: Some(terminal),
    })
}

fn resize(terminal: &impl AsFd, rows: u16, cols: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

fn carry(mut from: File, kind: Kind, output: &Output) {
    let mut chunk = vec![0u8; wire::CHUNK];
    loop {
        match from.read(&mut chunk) {
            // A terminal whose last process has gone answers EIO.
            Ok(0) | Err(_) => return,
            Ok(n) if output.send(kind, &chunk[..n]).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Carries the client's frames to the command until the client goes.
fn feed(mut stream: Connection, mut stdin: Option<File>, terminal: Option<&File>) {
    while let Ok(Some((kind, body))) = wire::read_frame(&mut stream) {
        match kind {
            Kind::Stdin => {
                if stdin.as_mut().is_some_and(|s| s.write_all(&body).is_err()) {
                    stdin = None; // the command reads no more; the rest of its input is dropped
                }
            }
            Kind::StdinEnd => stdin = None,
            Kind::Resize if body.len() == 4 => {
                if let Some(terminal) = terminal {
                    let word = |i| u16::from_le_bytes([body[i], body[i + 1]]);
                    resize(terminal, word(0), word(2));
                }
            }
            _ => return,
        }
    }
}
