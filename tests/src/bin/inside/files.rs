//! Copying a file, in the folder where it stands.

use anyhow::Result;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

/// KiB a second that are read from one file and written to another, by so many bytes a call; the files have so many
/// times as much, and are rewritten from the start when they end.
pub fn copies(time: Duration, piece: usize, pieces: usize) -> Result<f64> {
    let open =
        |name: &str| File::options().read(true).write(true).create(true).truncate(true).open(name);
    let (mut from, mut to) = (open("copied-from")?, open("copied-to")?);
    let mut buffer = vec![7_u8; piece];
    for _ in 0..pieces {
        from.write_all(&buffer)?;
    }
    let start = Instant::now();
    let mut done = 0_u64;
    while start.elapsed() < time {
        from.rewind()?;
        to.rewind()?;
        for _ in 0..pieces {
            from.read_exact(&mut buffer)?;
            to.write_all(&buffer)?;
            done += piece as u64;
            if start.elapsed() >= time {
                break;
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    for name in ["copied-from", "copied-to"] {
        fs::remove_file(name)?;
    }
    Ok(done as f64 / 1024.0 / took)
}
