//! `docs/benchmarks.md`.

use super::lives;
use ::lab::bench::{Report, Row};
use ::lab::host::Ground;
use std::fmt::Write;

/// What is aimed at: a name, the runtime's row it is about, whether the ratio counts, and what it may be.
struct Target {
    name: &'static str,
    row: &'static str,
    is_ratio: bool,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    Most(f64),
    Least(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::Most(most) => value <= most,
            Self::Least(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Most(most) => write!(f, "≤ {most}"),
            Self::Least(least) => write!(f, "≥ {least}"),
        }
    }
}

const TARGETS: [Target; 8] = [
    Target {
        name: "cold start, × runc",
        row: "ctr run --rm … true",
        is_ratio: true,
        bound: Bound::Most(1.5),
    },
    Target {
        name: "VMM start to agent, ms",
        row: "phase: VMM start to agent",
        is_ratio: false,
        bound: Bound::Most(500.0),
    },
    Target {
        name: "exec, × runc",
        row: "ctr task exec … true",
        is_ratio: true,
        bound: Bound::Most(1.0),
    },
    Target {
        name: "VMM's own memory, MiB",
        row: "memory, idle: VMM",
        is_ratio: false,
        bound: Bound::Most(5.0),
    },
    Target {
        name: "whole sandbox, MiB",
        row: "memory, idle: whole sandbox",
        is_ratio: false,
        bound: Bound::Most(60.0),
    },
    Target {
        name: "a pod's network, to the pod, × runc",
        row: "pod's network: to the pod",
        is_ratio: true,
        bound: Bound::Least(0.8),
    },
    Target {
        name: "the same from the pod, × runc",
        row: "pod's network: from the pod",
        is_ratio: true,
        bound: Bound::Least(0.8),
    },
    Target {
        name: "the same, round trip, × runc",
        row: "pod's network: round trip",
        is_ratio: true,
        bound: Bound::Most(1.5),
    },
];

/// The page.
pub fn text(report: &Report, ground: Ground) -> String {
    let mut page = format!("{HEAD}{}", clock(ground));
    push(
        &mut page,
        format_args!("\n## Targets\n\n| | target | measured | |\n|---|---:|---:|---|\n"),
    );
    for target in &TARGETS {
        push(&mut page, format_args!("{}\n", target_line(target, report)));
    }
    push(
        &mut page,
        format_args!(
            "\n## Figures\n\n| what | runtime | median | spread | × runc |\n|---|---|---:|---:|---:|\n"
        ),
    );
    for row in report.rows.iter().filter(|row| lives::step(row).is_none()) {
        push(&mut page, format_args!("{}\n", row_line(row)));
    }
    push(&mut page, format_args!("\n{}", lives::table(report)));
    push(
        &mut page,
        format_args!("\n## A start, in phases\n\n![phases of a start](benchmarks.svg)\n"),
    );
    push(&mut page, format_args!("\n## The machine\n\n| | |\n|---|---|\n"));
    for (name, value) in &report.machine {
        push(&mut page, format_args!("| {name} | {value} |\n"));
    }
    push(&mut page, format_args!("| measured runs of each | {} |\n", report.runs));
    page
}

const HEAD: &str = "# Benchmarks

Written by `make bench`; to repeat them, run it. The runtimes are run in turn, those of containerd by the same one with
the same image. The first run of each kind is thrown away; the spread is the distance between the quartiles. Rows for programs:
[benchmarks.json](benchmarks.json). What programs do inside a container is on [a page of its own](benchmarks-inside.md).

";

/// What a millisecond is.
pub(super) fn clock(ground: Ground) -> &'static str {
    match ground {
        Ground::Emulated => {
            "Times are of a lab whose clock counts instructions: a millisecond is 500,000 instructions of an emulated
processor. So counted they hardly differ from run to run or from one machine to another, and compare only with each
other: exits and nested page faults cost more than on hardware. `make bench ON=host` measures the same on a host whose KVM
runs guests, by the wall clock: whoever has one can publish its figures.
"
        }
        Ground::Host => "Times are by the wall clock, on this host's own KVM.\n",
    }
}

pub(super) fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = page.write_fmt(text);
}

fn target_line(target: &Target, report: &Report) -> String {
    let row = report.rows.iter().find(|r| r.name == target.row && r.runtime == "kata-like");
    let value = row.and_then(|r| if target.is_ratio { r.ratio } else { Some(r.median) });
    let (measured, verdict) = match value {
        Some(value) => {
            (format!("{value:.2}"), if target.bound.is_met(value) { "met" } else { "**not met**" })
        }
        None => ("–".to_owned(), "**not measured**"),
    };
    format!("| {} | {} | {measured} | {verdict} |", target.name, target.bound)
}

fn row_line(row: &Row) -> String {
    let ratio = row.ratio.map_or_else(|| "–".to_owned(), |r| format!("{r:.2}"));
    let Row { name, unit, runtime, median, spread, .. } = row;
    format!("| {name} | {runtime} | {median:.1} {unit} | {spread:.1} | {ratio} |")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row =
            |runtime, median| Row::of("ctr run --rm … true", "ms", runtime, &[median]).unwrap();
        let network = |runtime, median| {
            Row::of("pod's network: to the pod", "MiB/s", runtime, &[median]).unwrap()
        };
        let mut rows = vec![row("runc", 100.0), row("kata-like", 250.0)];
        rows.extend([network("runc", 20.0), network("kata-like", 18.0)]);
        ::lab::bench::compare_to_runc(&mut rows);
        Report { machine: vec![], runs: 1, rows, exits: vec![], phases: vec![], failures: vec![] }
    }

    #[test]
    fn a_missed_target_and_a_missing_figure_are_told() {
        let page = text(&report(), Ground::Emulated);
        assert!(page.contains("| cold start, × runc | ≤ 1.5 | 2.50 | **not met** |"), "{page}");
        assert!(page.contains("| exec, × runc | ≤ 1 | – | **not measured** |"), "{page}");
        assert!(page.contains("to the pod, × runc | ≥ 0.8 | 0.90 | met |"), "{page}");
        assert!(
            page.contains("| ctr run --rm … true | kata-like | 250.0 ms | 0.0 | 2.50 |"),
            "{page}"
        );
    }
}
