//! The lives by command line in `docs/benchmarks.md`, and `docs/benchmarks-lives.svg`.

use super::plot::Drawing;
use ::lab::bench::{Report, Row};
use std::fmt::Write as _;

/// The steps of a life, in their order; the last is the sum of the others.
const STEPS: [&str; 5] = ["create", "start", "kill", "delete", "sum"];

/// Program and step, if the row is of a life.
pub fn step(row: &Row) -> Option<(&str, &str)> {
    row.name.rsplit_once(": ").filter(|(_, step)| STEPS.contains(step))
}

/// Programs and runtimes, each pair once, in the report's order.
fn lives(report: &Report) -> Vec<(&str, &str)> {
    let mut lives = Vec::new();
    for row in &report.rows {
        if let Some((program, _)) = step(row)
            && !lives.contains(&(program, row.runtime.as_str()))
        {
            lives.push((program, row.runtime.as_str()));
        }
    }
    lives
}

fn rows<'a>(report: &'a Report, (program, runtime): (&str, &str)) -> Vec<&'a Row> {
    let named = |wanted: &&str| {
        let of_it = |row: &&Row| step(row) == Some((program, *wanted)) && row.runtime == runtime;
        report.rows.iter().find(of_it)
    };
    STEPS.iter().filter_map(named).collect()
}

/// One line a program and runtime.
pub fn table(report: &Report) -> String {
    let mut text = HEAD.to_owned();
    for life in lives(report) {
        let rows = rows(report, life);
        let _ = write!(text, "| {} | {} |", life.0, life.1);
        for row in &rows {
            let _ = write!(text, " {:.0} ± {:.0} |", row.median, row.spread);
        }
        let ratio = rows.last().and_then(|sum| sum.ratio);
        let _ =
            writeln!(text, " {} |", ratio.map_or_else(|| "–".to_owned(), |r| format!("{r:.2}")));
    }
    text
}

const HEAD: &str = "## A life by command line

Median ± spread, ms. A kill is over when the container's process has ended; that of hello-world, which ends by
itself, is in its start. runc, crun and runsc are Debian's; runsc runs without a network.

![lives by command line](benchmarks-lives.svg)

| program | runtime | create | start | kill | delete | sum | sum, × runc |
|---|---|---:|---:|---:|---:|---:|---:|
";

/// A bar a program and runtime, cut into steps.
pub fn picture(report: &Report) -> String {
    let lives = lives(report);
    let sums = lives.iter().filter_map(|life| rows(report, *life).last().map(|sum| sum.median));
    let mut drawing =
        Drawing::new(lives.len() as f64 * 34.0 + 110.0, 220.0, sums.fold(1.0, f64::max));
    for (index, life) in lives.iter().enumerate() {
        let (y, mut at) = (10.0 + 34.0 * index as f64, 0.0);
        drawing.label(&format!("{} on {}", life.0, life.1), y + 18.0);
        for (colour, row) in rows(report, *life).iter().enumerate() {
            if row.name.ends_with(": sum") {
                drawing.value(at, y + 18.0, row.median);
            } else {
                drawing.bar(at, y, row.median, colour);
                at += row.median;
            }
        }
    }
    for (index, step) in STEPS.iter().enumerate().take(STEPS.len() - 1) {
        drawing.legend(34.0 * lives.len() as f64 + 28.0 + 20.0 * index as f64, index, step);
    }
    drawing.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_one_line_and_one_bar() {
        let row =
            |name: &str, runtime: &str, value| Row::of(name, "ms", runtime, &[value]).unwrap();
        let mut rows = vec![row("phase: VMM spawn", "kata-like", 1.0)];
        for (runtime, factor) in [("runc", 1.0), ("crun", 0.5)] {
            for (step, value) in STEPS.iter().zip([1.0, 2.0, 3.0, 4.0, 10.0]) {
                rows.push(row(&format!("pause: {step}"), runtime, value * factor));
            }
        }
        ::lab::bench::compare_to_runc(&mut rows);
        let report = Report {
            machine: vec![],
            runs: 1,
            rows,
            exits: vec![],
            phases: vec![],
            failures: vec![],
        };
        let table = table(&report);
        assert!(
            table.contains("| pause | crun | 0 ± 0 | 1 ± 0 | 2 ± 0 | 2 ± 0 | 5 ± 0 | 0.50 |"),
            "{table}"
        );
        assert!(!table.contains("VMM spawn"));
        assert_eq!(picture(&report).matches("pause on").count(), 2);
    }
}
