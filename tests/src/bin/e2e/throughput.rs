//! Much data: through exec in each direction, and a slow reader.

use crate::command;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

crate::cases!(
    crate::Scope::AllOnce;
    what_goes_in_comes_out_the_same,
    a_slow_reader_loses_nothing,
);

const CHUNK: usize = 1 << 18;

/// A stream of bytes that anyone can make again and that repeats nowhere near a buffer's length.
struct Pattern(u64);

impl Pattern {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// `cat` in the container: what goes in must come out, byte for byte; 32 MiB for each of `--many`.
fn what_goes_in_comes_out_the_same(context: &Context) -> Result<()> {
    let chunks = (context.many as usize) * (32 << 20) / CHUNK;
    let container = context.sleeper()?;
    let mut exec = container
        .exec_command(&[], &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = exec.stdin.take().context("stdin")?;
    let mut stdout = exec.stdout.take().context("stdout")?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut pattern, mut bytes) = (Pattern::new(), vec![0; CHUNK]);
        for _ in 0..chunks {
            pattern.fill(&mut bytes);
            stdin.write_all(&bytes)?;
        }
        Ok(())
    });
    let (mut pattern, mut expected, mut got) = (Pattern::new(), vec![0; CHUNK], vec![0; CHUNK]);
    for chunk in 0..chunks {
        pattern.fill(&mut expected);
        stdout.read_exact(&mut got).with_context(|| format!("chunk {chunk}"))?;
        if got != expected {
            bail!("chunk {chunk} of {CHUNK} bytes differs");
        }
    }
    if stdout.read(&mut got)? != 0 {
        bail!("more came out than went in");
    }
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let end = Instant::now() + Duration::from_secs(20);
    match command::wait_until(&mut exec, end)? {
        Some(status) if status.success() => container.remove(),
        other => bail!("ctr task exec ended with {other:?}"),
    }
}

/// The container writes 8 MiB; the reader takes its time.
///
/// The process stays until all has been read: at its end ctr drops what it has not printed yet, on runc too.
fn a_slow_reader_loses_nothing(context: &Context) -> Result<()> {
    const TOTAL: usize = 8 << 20;
    let container = context.sleeper()?;
    let script = format!("yes 0123456789abcde | head -c {TOTAL}; read -r all_read");
    let mut exec = container
        .exec_command(&[], &["sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = exec.stdin.take().context("stdin")?;
    let mut stdout = exec.stdout.take().context("stdout")?;
    let (mut all, mut bytes) = (Vec::new(), vec![0; CHUNK]);
    while all.len() < TOTAL {
        std::thread::sleep(Duration::from_millis(if all.len() < 1 << 20 { 500 } else { 50 }));
        match stdout.read(&mut bytes)? {
            0 => break,
            n => all.extend_from_slice(&bytes[..n]),
        }
    }
    stdin.write_all(b"yes\n")?;
    drop(stdin);
    command::wait_until(&mut exec, Instant::now() + Duration::from_secs(20))?;
    if all != b"0123456789abcde\n".repeat(TOTAL / 16) {
        bail!("{} of {TOTAL} bytes came, or others than were written", all.len());
    }
    container.remove()
}
