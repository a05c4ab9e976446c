//! `docs/benchmarks-inside.{md,json,svg}`: what programs do in a container.

use super::page::{clock, push};
use super::plot::Drawing;
use crate::build;
use ::lab::bench::{INDEX, Report, Row, of_copies, rows_json};
use ::lab::host::Ground;
use anyhow::Result;

/// Writes the page, the rows and the picture, of one copy and of several.
///
/// # Errors
/// The files can't be written.
pub fn write(reports: [&Report; 2], ground: Ground) -> Result<()> {
    let docs = build::workspace().join("docs");
    let all = |report: &&Report| [report.rows.clone(), report.exits.clone()].concat();
    let rows = reports.iter().flat_map(all).collect();
    let all = Report { rows, ..reports[0].clone() };
    std::fs::write(docs.join("benchmarks-inside.json"), rows_json(&all)?)?;
    std::fs::write(docs.join("benchmarks-inside.svg"), picture(reports))?;
    std::fs::write(docs.join("benchmarks-inside.md"), text(reports, ground))?;
    println!("wrote {}", docs.join("benchmarks-inside.md").display());
    Ok(())
}

const HEAD: &str = "# Inside a container

Written by `make bench PART=inside`; to repeat it, run that. What a container's programs do once it runs, on the runtimes
in turn: each in a root file system of its own, an overlay over the same Debian, of which the host has read what the
program needs; what is written goes to the host's memory. *Own disk* is ours as in a pod of Kubernetes, or with
`root.writes = \"disk\"`; *ext4* is runc with what is written on a disk of the host's, in its
memory; *EROFS* is by `ctr run`, on containerd 2.4's EROFS snapshotter: the Debian is one
layer, and what is written goes to an ext4 in a file in the host's memory, which the host mounts for runc and the guest for
ours. Behind each figure, how it compares with runc's: above 1 is better than
runc, of times as of rates. runc, crun and runsc are Debian's; runsc runs without a network. Rows for programs:
[benchmarks-inside.json](benchmarks-inside.json). The network of pods is measured with [their lives](benchmarks.md).

![the index beside runc's](benchmarks-inside.svg)

";

/// What stands above the counts of exits.
const EXITS: &str = "
## Exits

What holds on any machine: how often the guest left to the host for each, and how often it did so to tell a device of
requests (of files that the host has, of its disk). Of a rate it is for a thousand times, of copies for a thousand KiB;
otherwise for all that the container did, less what one takes that does nothing. The rest are mostly first uses of a page
of the guest's memory, halts, timers and ends of interrupts.

";

/// What stands above the rows of several copies.
const SEVERAL: &str = "
## Four copies on four CPUs

Each row's program four times at once in a container of four CPUs: the sum of their rates, or the time until all have ended.
The emulated lab has four CPUs then, which take turns: together they do what the one of the other rows does alone, on every
runtime, so that figures compare within this table only; what they wait for each other shows, what they do at once does not.

";

fn text(reports: [&Report; 2], ground: Ground) -> String {
    let mut page = format!("{HEAD}{}\n", clock(ground));
    table(&mut page, reports[0]);
    page.push_str(EXITS);
    exits(&mut page, reports[0]);
    page.push_str(SEVERAL);
    table(&mut page, reports[1]);
    push(&mut page, format_args!("\n| | |\n|---|---|\n"));
    for (name, value) in &reports[0].machine {
        push(&mut page, format_args!("| {name} | {value} |\n"));
    }
    push(&mut page, format_args!("| runs of each | {} |\n", reports[0].runs));
    page
}

/// A row a program, a column a runtime; the means; what failed.
fn table(page: &mut String, report: &Report) {
    let names = listed(report, |row| &row.name);
    let runtimes = listed(report, |row| &row.runtime);
    push(page, format_args!("| what |"));
    for runtime in &runtimes {
        push(page, format_args!(" {runtime} |"));
    }
    push(page, format_args!("\n|---|{}\n", "---:|".repeat(runtimes.len())));
    for name in names {
        let unit = row_of(report, name, "runc").map_or("", |row| &row.unit);
        push(page, format_args!("| {name}, {unit} |"));
        for runtime in &runtimes {
            let figure = row_of(report, name, runtime).map_or_else(|| "failed".to_owned(), figure);
            push(page, format_args!(" {figure} |"));
        }
        push(page, format_args!("\n"));
    }
    for (what, rows) in means(report) {
        push(page, format_args!("| **{what}** |"));
        for runtime in &runtimes {
            let of_it = rows.iter().copied().filter(|row| row.runtime == **runtime);
            push(page, format_args!(" **{:.2}** |", mean(of_it)));
        }
        push(page, format_args!("\n"));
    }
    for failure in &report.failures {
        let (name, runtime, said) = (&failure.name, &failure.runtime, &failure.said);
        push(page, format_args!("\nFailed: {name} on {runtime}: {said}\n"));
    }
}

/// A row a program, two columns a runtime.
fn exits(page: &mut String, report: &Report) {
    let names = list(&report.exits, |row| &row.name);
    let runtimes = list(&report.exits, |row| &row.runtime);
    push(page, format_args!("| what |"));
    for runtime in &runtimes {
        push(page, format_args!(" {runtime}: exits | notifications |"));
    }
    push(page, format_args!("\n|---|{}\n", "---:|---:|".repeat(runtimes.len())));
    for name in names {
        let rate = row_of(report, name, "runc").is_some_and(|row| row.unit != "s");
        push(page, format_args!("| {name}{} |", if rate { ", 1,000 ×" } else { "" }));
        for runtime in &runtimes {
            for kind in ["exits", "notifications"] {
                let is_it =
                    |row: &&Row| row.name == *name && row.runtime == **runtime && row.unit == kind;
                let row = report.exits.iter().find(is_it);
                let count = row.map_or_else(|| "–".to_owned(), |row| format!("{:.0}", row.median));
                push(page, format_args!(" {count} |"));
            }
        }
        push(page, format_args!("\n"));
    }
}

fn listed(report: &Report, of: impl Fn(&Row) -> &String) -> Vec<&String> {
    list(&report.rows, of)
}

/// Without repetition.
fn list(rows: &[Row], of: impl Fn(&Row) -> &String) -> Vec<&String> {
    let mut list = Vec::new();
    for row in rows {
        let name = of(row);
        if !list.contains(&name) {
            list.push(name);
        }
    }
    list
}

fn row_of<'a>(report: &'a Report, name: &str, runtime: &str) -> Option<&'a Row> {
    report.rows.iter().find(|row| row.name == name && row.runtime == runtime)
}

/// Of what means are taken: the rows that none failed, of the index and of the other programs.
fn means(report: &Report) -> Vec<(&'static str, Vec<&Row>)> {
    let copies = |row: &Row| INDEX.iter().any(|name| in_the_index(row, name));
    let runtimes = listed(report, |row| &row.runtime);
    let of_all = |row: &&Row| runtimes.iter().all(|r| row_of(report, &row.name, r).is_some());
    let (index, others): (Vec<_>, Vec<_>) =
        report.rows.iter().filter(of_all).partition(|row| copies(row));
    let means = [("index: geometric mean of UnixBench's kinds", index), ("the others", others)];
    means.into_iter().filter(|(_, rows)| !rows.is_empty()).collect()
}

fn in_the_index(row: &Row, name: &str) -> bool {
    row.name == name || row.name == of_copies(name, super::COPIES)
}

/// The runtimes' indices, one bar each, for one copy and for several.
fn picture(reports: [&Report; 2]) -> String {
    let mut bars = Vec::new();
    for (colour, (report, copies)) in reports.iter().zip(["one copy", "four copies"]).enumerate() {
        let Some((_, rows)) = means(report).into_iter().next() else { continue };
        for runtime in listed(report, |row| &row.runtime) {
            let of_it = rows.iter().copied().filter(|row| row.runtime == *runtime);
            bars.push((format!("{runtime}, {copies}"), colour, mean(of_it)));
        }
    }
    let most = bars.iter().map(|(_, _, index)| *index).fold(1.0, f64::max);
    let mut drawing = Drawing::new(bars.len() as f64 * 34.0 + 20.0, 220.0, most);
    for (number, (label, colour, index)) in bars.iter().enumerate() {
        let y = 10.0 + 34.0 * number as f64;
        drawing.label(label, y + 18.0);
        drawing.bar(0.0, y, *index, *colour);
        drawing.figure(*index, y + 18.0, &format!("{index:.2}"));
    }
    drawing.end()
}

/// How much better than runc.
fn times_runc(row: &Row) -> Option<f64> {
    row.ratio.map(|ratio| if row.unit == "s" { 1.0 / ratio } else { ratio })
}

fn figure(row: &Row) -> String {
    let value = match row.median {
        median if median < 100.0 => format!("{median:.2}"),
        median => format!("{median:.0}"),
    };
    times_runc(row).map_or_else(|| value.clone(), |times| format!("{value} ({times:.2})"))
}

/// Geometric.
fn mean<'a>(rows: impl Iterator<Item = &'a Row>) -> f64 {
    let logarithms: Vec<f64> = rows.filter_map(times_runc).map(f64::ln).collect();
    (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::lab::bench::{Failure, compare_to_runc};

    fn report(mut rows: Vec<Row>, failures: Vec<Failure>) -> Report {
        compare_to_runc(&mut rows);
        Report { machine: vec![], runs: 1, rows, exits: vec![], phases: vec![], failures }
    }

    #[test]
    fn times_and_rates_both_say_how_much_better() {
        let row = |name, unit, runtime, value: f64| Row::of(name, unit, runtime, &[value]).unwrap();
        let mut one = report(
            vec![
                row("git", "s", "runc", 2.0),
                row("git", "s", "kata-like", 4.0),
                row("pipe", "/s", "runc", 100.0),
                row("pipe", "/s", "kata-like", 800.0),
                row("one shell script", "s", "runc", 4.0),
                row("one shell script", "s", "kata-like", 2.0),
                row("execl", "/s", "runc", 9.0),
            ],
            vec![Failure {
                name: "execl".into(),
                runtime: "kata-like".into(),
                said: "it fell over".into(),
            }],
        );
        let four = report(
            vec![
                row("pipe, 4 copies", "/s", "runc", 100.0),
                row("pipe, 4 copies", "/s", "kata-like", 90.0),
            ],
            vec![],
        );
        let count = |name, kind, value| Row::of(name, kind, "kata-like", &[value]).unwrap();
        one.exits = vec![
            count("git", "exits", 31.0),
            count("git", "notifications", 4.0),
            count("pipe", "exits", 0.2),
        ];
        let page = text([&one, &four], Ground::Emulated);
        assert!(page.contains("| git, s | 2.00 (1.00) | 4.00 (0.50) |"), "{page}");
        assert!(page.contains("| pipe, /s | 100 (1.00) | 800 (8.00) |"), "{page}");
        assert!(page.contains("| execl, /s | 9.00 (1.00) | failed |"), "{page}");
        assert!(page.contains("kinds** | **1.00** | **4.00** |"), "{page}");
        assert!(page.contains("| **the others** | **1.00** | **0.50** |"), "{page}");
        assert!(page.contains("kinds** | **1.00** | **0.90** |"), "{page}");
        assert!(page.contains("| git | 31 | 4 |"), "{page}");
        assert!(page.contains("| pipe, 1,000 × | 0 | – |"), "{page}");
        assert!(page.contains("Failed: execl on kata-like: it fell over"), "{page}");
        let picture = picture([&one, &four]);
        assert!(picture.contains("kata-like, four copies") && picture.contains(">0.90<"));
    }
}
