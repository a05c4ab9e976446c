//! Small programs that a container runs for the benchmark: each does one thing over and over for some seconds, and prints
//! how often a second. They are of the kinds that UnixBench's index is made of.
//!
//! `inside NAME SECONDS`

mod files;
mod processes;

use anyhow::{Context, Result, bail};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, seconds, rest @ ..] = &arguments[..] else { bail!("inside NAME SECONDS") };
    let time = Duration::from_secs_f64(seconds.parse().context("SECONDS")?);
    let a_second = match name.as_str() {
        "integers" => repeated(time, integers),
        "floats" => repeated(time, floats),
        "memory" => memory(time),
        "execs" => processes::execs(time, rest)?,
        "forks" => processes::forks(time)?,
        "pipe" => processes::pipe(time)?,
        "switches" => processes::switches(time)?,
        "calls" => processes::calls(time)?,
        "copy-256" => files::copies(time, 256, 500)?,
        "copy-1024" => files::copies(time, 1024, 2000)?,
        "copy-4096" => files::copies(time, 4096, 8000)?,
        _ => bail!("there is no program {name:?}"),
    };
    println!("{a_second:.3}");
    Ok(())
}

/// How often a second `once` can be done.
fn repeated(time: Duration, mut once: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut done = 0_u64;
    while start.elapsed() < time {
        once();
        done += 1;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// Comparisons, copies and arithmetic of integers: an insertion sort, and sums by what comes out.
fn integers() {
    let mut state = black_box(12345_u32);
    let mut list = [0_u32; 64];
    for place in &mut list {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *place = state >> 8;
    }
    for end in 1..list.len() {
        let mut at = end;
        while at > 0 && list[at - 1] > list[at] {
            list.swap(at - 1, at);
            at -= 1;
        }
    }
    let sum =
        list.iter().enumerate().fold(0_u32, |sum, (i, n)| sum.wrapping_add(n / (i as u32 + 1)));
    black_box(sum);
}

/// Elementary functions, in a chain that nothing can be left out of.
fn floats() {
    let mut x = black_box(0.5_f64);
    for step in 1..64 {
        x = (x.sin() + f64::from(step).sqrt()).atan() + (x.abs() + 1.0).ln().exp() / 3.0;
    }
    black_box(x);
}

/// MiB a second that are copied between blocks larger than any cache.
fn memory(time: Duration) -> f64 {
    const BLOCK: usize = 16 << 20;
    let (from, mut to) = (vec![1_u8; BLOCK], vec![0_u8; BLOCK]);
    let copies = repeated(time, || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    });
    copies * (BLOCK >> 20) as f64
}
