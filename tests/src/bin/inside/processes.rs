//! Processes and pipes.

use crate::repeated;
use anyhow::{Context, Result, bail};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe as new_pipe};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a pipe's message.
const MESSAGE: usize = 512;

/// This program executes itself until the time is over; `so_far`: how often it has, and when it began, ns.
pub fn execs(time: Duration, so_far: &[String]) -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let (done, began) = match so_far {
        [done, began] => (done.parse::<u64>()?, began.parse::<u128>()?),
        _ => (0, now),
    };
    let passed = Duration::from_nanos((now - began) as u64);
    if passed >= time {
        return Ok(done as f64 / passed.as_secs_f64());
    }
    let words = ["execs".to_owned(), time.as_secs_f64().to_string()];
    let more = [(done + 1).to_string(), began.to_string()];
    let failed = Command::new(std::env::current_exe()?).args(words).args(more).exec();
    Err(failed).context("execute this program")
}

/// Processes that are made and waited for.
pub fn forks(time: Duration) -> Result<f64> {
    let mut failed = None;
    let a_second = repeated(time, || {
        if let Err(error) = child(|| ()) {
            failed = Some(error);
        }
    });
    failed.map_or(Ok(a_second), Err)
}

/// A process that does something, until it has ended. This one has one thread.
fn child(work: impl FnOnce()) -> Result<()> {
    // SAFETY: there is no other thread, so the child can do what its parent can.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => waitpid(child, None).map(drop).context("wait"),
        ForkResult::Child => {
            work();
            // SAFETY: nothing of the parent's is to be flushed or dropped twice.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Messages that one process writes to a pipe and reads again.
pub fn pipe(time: Duration) -> Result<f64> {
    let (mut reader, mut writer) = new_pipe()?;
    let mut message = [1_u8; MESSAGE];
    let mut failed = None;
    let a_second = repeated(time, || {
        if let Err(error) =
            writer.write_all(&message).and_then(|()| reader.read_exact(&mut message))
        {
            failed = Some(error);
        }
    });
    failed.map_or(Ok(a_second), |error| Err(error.into()))
}

/// Numbers that two processes hand to each other and back.
pub fn switches(time: Duration) -> Result<f64> {
    let (their_reader, writer) = new_pipe()?;
    let (reader, their_writer) = new_pipe()?;
    // SAFETY: there is no other thread, so the child can do what its parent can.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop((reader, writer));
            let _ = echo(their_reader, their_writer);
            // SAFETY: nothing of the parent's is to be flushed or dropped twice.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((their_reader, their_writer));
            let a_second = hand_over(time, reader, writer);
            waitpid(child, None)?;
            a_second
        }
    }
}

fn hand_over(time: Duration, mut reader: PipeReader, mut writer: PipeWriter) -> Result<f64> {
    let (mut number, mut wrong) = (0_u32, false);
    let a_second = repeated(time, || {
        let mut answer = [0; 4];
        let told =
            writer.write_all(&number.to_ne_bytes()).and_then(|()| reader.read_exact(&mut answer));
        wrong |= told.is_err() || u32::from_ne_bytes(answer) != number;
        number = number.wrapping_add(1);
    });
    if wrong {
        bail!("a number got lost between two processes");
    }
    Ok(a_second)
}

/// Until the other end is closed.
fn echo(mut reader: PipeReader, mut writer: PipeWriter) -> std::io::Result<()> {
    let mut number = [0; 4];
    loop {
        reader.read_exact(&mut number)?;
        writer.write_all(&number)?;
    }
}

/// Rounds of five cheap system calls.
pub fn calls(time: Duration) -> Result<f64> {
    let file = std::fs::File::open("/")?;
    let mut failed = None;
    let a_second = repeated(time, || {
        match nix::unistd::dup(&file) {
            Ok(copy) => drop(copy),
            Err(error) => failed = Some(error),
        }
        // SAFETY: neither takes a pointer.
        unsafe {
            libc::syscall(libc::SYS_getpid);
            libc::syscall(libc::SYS_getuid);
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o22));
    });
    failed.map_or(Ok(a_second), |error| Err(error.into()))
}
