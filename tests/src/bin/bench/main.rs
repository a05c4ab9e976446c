//! The benchmark's part in the lab: runs the runtimes in turn and prints a [`Report`] as JSON.
//!
//! `bench lives RUNS COPIES [pods]`; every figure is of RUNS runs after a first one that is thrown away. `bench inside RUNS COPIES
//! [ONLY]`: of what programs do in a container, or so many copies of one in a container of so many CPUs; with ONLY of those
//! whose names have that.

mod erofs;
mod exits;
mod inside;
mod lifecycle;
mod memory;
mod phases;
mod pods;
mod timing;

use anyhow::{Context, Result, bail};
use lab::bench::{Report, Row, compare_to_runc};
use lab::containerd::Version;
use std::fs;
use timing::{Container, Runtime};

/// The containerd that is measured with.
const CONTAINERD: Version = Version::V1_7;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().context("which part?")?;
    let runs = arguments.next().context("how many runs?")?.parse()?;
    let report = match part.as_str() {
        "lives" => {
            // The copies, which are of the other part.
            let only = arguments.nth(1).unwrap_or_default();
            lives(runs, &only)?
        }
        "inside" => {
            let copies = arguments.next().context("how many copies?")?.parse()?;
            inside(runs, copies, &arguments.next().unwrap_or_default())?
        }
        _ => bail!("there is no part {part:?}"),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn inside(runs: usize, copies: u32, only: &str) -> Result<Report> {
    let inside::Figures { mut rows, exits, failures } = inside::figures(runs, copies, only)?;
    compare_to_runc(&mut rows);
    Ok(Report { machine: machine()?, runs, rows, exits, phases: Vec::new(), failures })
}

fn lives(runs: usize, only: &str) -> Result<Report> {
    CONTAINERD.start()?;
    let mut rows = Vec::new();
    let (exits, failures) = Default::default();
    if only == "pods" {
        rows.extend(pods::rows(runs)?);
        compare_to_runc(&mut rows);
        return Ok(Report { machine: machine()?, runs, rows, exits, phases: Vec::new(), failures });
    }
    let starts = timing::starts(runs)?;
    for (runtime, samples) in [(Runtime::Runc, &starts.runc), (Runtime::KataLike, &starts.ours)] {
        rows.extend(Row::of("ctr run --rm … true", "ms", runtime.name(), samples));
    }
    let phases = phases::medians(&starts.marks);
    rows.extend(phases::rows(&starts.marks));
    let containers = [Container::start(Runtime::Runc)?, Container::start(Runtime::KataLike)?];
    let execs = timing::execs(&containers, runs)?;
    for (container, samples) in containers.iter().zip(&execs) {
        rows.extend(Row::of("ctr task exec … true", "ms", container.runtime.name(), samples));
    }
    for container in &containers {
        rows.extend(memory::rows(container)?);
    }
    drop(containers);
    rows.extend(lifecycle::rows(runs.div_ceil(2))?);
    rows.extend(pods::rows(runs.div_ceil(2))?);
    rows.extend(pods::memory()?);
    compare_to_runc(&mut rows);
    Ok(Report { machine: machine()?, runs, rows, exits, phases, failures })
}

fn machine() -> Result<Vec<(String, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory = memory.lines().next().context("no memory?")?;
    let text = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(vec![
        ("processor".into(), field("model name").unwrap_or_default()),
        ("processors".into(), cpuinfo.matches("processor\t").count().to_string()),
        ("memory".into(), text(memory.trim_start_matches("MemTotal:"))),
        ("kernel".into(), fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("containerd".into(), CONTAINERD.name().to_owned()),
    ])
}
