//! `cargo xtask bench`: measures in the lab and writes `docs/benchmarks.{md,json,svg}`; `cargo xtask bench inside`
//! writes `docs/benchmarks-inside.{md,json,svg}`.

mod inside;
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

/// How many copies of a program there are beside one alone, each with a CPU.
const COPIES: u32 = 4;

/// How to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value_t = Part::Lives)]
    part: Part,
    /// How often, after a first run that is thrown away
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// Of what programs do, only what has this in its name, one copy; of lives `pods`, their starts and network; tells the
    /// figures and writes nothing
    #[arg(long)]
    only: Option<String>,
    /// Take target/install as it is
    #[arg(long)]
    no_build: bool,
}

/// What there is to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Starts, execs and ends of containers and pods, memory, network
    Lives,
    /// What programs do in a container
    Inside,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Lives => "lives",
            Self::Inside => "inside",
        }
    }
}

/// Measures and writes.
///
/// # Errors
/// When something doesn't build, the lab doesn't come up, or a run fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_build {
        build::product()?;
    }
    let ground = lab::ground()?;
    match arguments.part {
        Part::Lives if arguments.only.is_some() => {
            for row in in_a_lab(arguments, ground, 1)?.rows {
                println!("{row:?}");
            }
            Ok(())
        }
        Part::Lives => write(&in_a_lab(arguments, ground, 1)?, ground),
        // Each figure is told when it is there.
        Part::Inside if arguments.only.is_some() => in_a_lab(arguments, ground, 1).map(drop),
        Part::Inside => {
            let reports = [1, COPIES].map(|copies| in_a_lab(arguments, ground, copies));
            let [one, several] = reports;
            inside::write([&one?, &several?], ground)
        }
    }
}

/// Measures in a lab of so many CPUs, or on this host.
fn in_a_lab(arguments: &Arguments, ground: Ground, cpus: u32) -> Result<Report> {
    let program = build::lab_program("bench")?;
    let agent = build::lab_program("lab-agent")?;
    let lab = Lab::named(&format!("bench-{}", arguments.part.name()))?;
    let client = match ground {
        // Its clock counts instructions: other load on this machine doesn't show.
        Ground::Emulated => lab.up_counting(&agent, cpus)?,
        Ground::Host => lab.up(&agent, ground, Purpose::Release)?,
    };
    let report = lab::install(&client)
        .and_then(|()| client.put(&[(&program, Path::new(PROGRAM))]).map(drop))
        .and_then(|()| prepare(arguments.part, &lab, &client))
        .and_then(|()| measure(&client, arguments, cpus));
    lab.down()?;
    report
}

/// What runs in the containers.
fn prepare(part: Part, lab: &Lab, client: &::lab::client::Client) -> Result<()> {
    // Of pods: what measures their network.
    lab.attach(&::lab::programs::prepare()?)?;
    if part == Part::Inside {
        let small = build::lab_program("inside")?;
        client.put(&[(&small, Path::new("/run/lab/inside"))])?;
    }
    Ok(())
}

fn measure(client: &::lab::client::Client, arguments: &Arguments, copies: u32) -> Result<Report> {
    let (part, runs) = (arguments.part.name().to_owned(), arguments.runs.to_string());
    let only = arguments.only.clone().unwrap_or_default();
    let argv = vec![PROGRAM.to_owned(), part, runs, copies.to_string(), only];
    let mut out = Vec::new();
    // It says something at every run: a lab that is silent for long hangs.
    let silence = Duration::from_secs(900);
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
