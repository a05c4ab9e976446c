//! A run of ours cut into phases, by the marks that the shim writes to containerd's log:
//! `phase=<name> mono_ns=<CLOCK_MONOTONIC, ns> id=<sandbox or container>`.

use crate::CONTAINERD;
use anyhow::{Context, Result};
use lab::bench::{Row, quantile};
use std::collections::HashMap;

/// Instants of one run, ns, by the name of the mark.
pub type Marks = HashMap<String, u64>;

/// The phases: what each is called, and the marks at which it begins and ends.
const PHASES: [(&str, &str, &str); 8] = [
    ("ctr, containerd, shim start", "command", "sandbox-launch"),
    ("VMM spawn", "sandbox-launch", "vmm-start"),
    ("machine built and confined", "vmm-start", "vcpus-started"),
    ("kernel to agent", "vcpus-started", "agent-reported"),
    ("agent ready", "agent-reported", "agent-ready"),
    ("container create and start", "agent-ready", "container-started"),
    ("run, exit seen", "container-started", "exit-seen"),
    ("clean-up", "exit-seen", "end"),
];

/// A figure of its own, because it has a target.
const VMM_TO_AGENT: (&str, &str, &str) = ("VMM start to agent", "vmm-start", "agent-reported");

/// The marks of the run of sandbox `id`, whose command took from `start` to `end`.
pub fn read(id: &str, (start, end): (u64, u64)) -> Result<Marks> {
    let log = std::fs::read(CONTAINERD.log()).context("containerd's log")?;
    let mut marks = find(&String::from_utf8_lossy(&log), id);
    marks.insert("command".to_owned(), start);
    marks.insert("end".to_owned(), end);
    Ok(marks)
}

fn find(log: &str, id: &str) -> Marks {
    let field = |line: &str, name: &str| -> Option<String> {
        let rest = line.split_once(name)?.1;
        let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    log.lines()
        .filter(|line| field(line, " id=").is_some_and(|found| found == id))
        .filter_map(|line| Some((field(line, "phase=")?, field(line, "mono_ns=")?.parse().ok()?)))
        .collect()
}

/// How long from one mark to another, ms, in each run that has both.
fn lengths(runs: &[Marks], from: &str, to: &str) -> Vec<f64> {
    runs.iter()
        .filter_map(|marks| Some((*marks.get(to)? as f64 - *marks.get(from)? as f64) / 1e6))
        .collect()
}

/// The phases' medians, ms, in order.
pub fn medians(runs: &[Marks]) -> Vec<(String, f64)> {
    PHASES
        .iter()
        .filter_map(|(name, from, to)| {
            Some(((*name).to_owned(), quantile(&lengths(runs, from, to), 0.5)?))
        })
        .collect()
}

/// The phases as rows of the report.
pub fn rows(runs: &[Marks]) -> Vec<Row> {
    PHASES
        .iter()
        .chain([&VMM_TO_AGENT])
        .filter_map(|(name, from, to)| {
            Row::of(&format!("phase: {name}"), "ms", "kata-like", &lengths(runs, from, to))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_right_sandbox_are_found() {
        let log = "time=\"x\" level=info msg=\"phase=vmm-start mono_ns=1000000 id=a\" runtime=z\n\
                   phase=agent-reported mono_ns=3500000 id=a\n\
                   phase=agent-reported mono_ns=9 id=ab\nphase=broken mono_ns=x id=a\n";
        let marks = find(log, "a");
        assert_eq!(marks.len(), 2);
        assert_eq!(lengths(&[marks], "vmm-start", "agent-reported"), [2.5]);
    }
}
