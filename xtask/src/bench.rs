//! `cargo xtask bench`: measures in the lab and writes `docs/benchmarks.{md,json,svg}`.

mod lives;
mod page;
mod plot;

use crate::{build, lab};
use ::lab::bench::Report;
use ::lab::host::Ground;
use ::lab::machine::{Lab, Purpose};
use ::lab::wire::Exec;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = "/run/lab/bench";

/// How to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often, after a first run that is thrown away
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// Take target/install as it is
    #[arg(long)]
    no_build: bool,
}

/// Measures and writes.
///
/// # Errors
/// When something doesn't build, the lab doesn't come up, or a run fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_build {
        build::product()?;
    }
    let program = build::lab_program("bench")?;
    let agent = build::lab_program("lab-agent")?;
    let lab = Lab::named("bench")?;
    let ground = lab::ground()?;
    let client = match ground {
        // Its clock counts instructions: other load on this machine doesn't show.
        Ground::Emulated => lab.up_counting(&agent)?,
        Ground::Host => lab.up(&agent, ground, Purpose::Tests)?,
    };
    let report = lab::install(&client)
        .and_then(|()| client.put(&[(&program, Path::new(PROGRAM))]).map(drop))
        .and_then(|()| measure(&client, arguments.runs));
    lab.down()?;
    write(&report?, ground)
}

fn measure(client: &::lab::client::Client, runs: u32) -> Result<Report> {
    let argv = vec![PROGRAM.to_owned(), runs.to_string()];
    let mut out = Vec::new();
    // It says something at every run: a lab that is silent for long hangs.
    let silence = Duration::from_secs(300);
    let status = client.exec_watched(Exec { argv, ..Exec::default() }, silence, None, &mut out)?;
    if status != 0 {
        bail!("the benchmark failed ({status})");
    }
    ::lab::bench::parse(&out).context("the benchmark's report")
}

fn write(report: &Report, ground: Ground) -> Result<()> {
    let docs = build::workspace().join("docs");
    std::fs::write(docs.join("benchmarks.json"), ::lab::bench::rows_json(report)?)?;
    std::fs::write(docs.join("benchmarks.svg"), plot::phases(report))?;
    std::fs::write(docs.join("benchmarks-lives.svg"), lives::picture(report))?;
    std::fs::write(docs.join("benchmarks.md"), page::text(report, ground))?;
    println!("wrote {}", docs.join("benchmarks.md").display());
    Ok(())
}
