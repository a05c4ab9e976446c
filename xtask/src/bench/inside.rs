//! `docs/benchmarks-inside.{md,json}`: what programs do in a container.

use super::page::{clock, push};
use crate::build;
use ::lab::bench::{Report, Row, rows_json};
use ::lab::host::Ground;
use anyhow::Result;

/// Writes the page and the rows.
///
/// # Errors
/// The files can't be written.
pub fn write(report: &Report, ground: Ground) -> Result<()> {
    let docs = build::workspace().join("docs");
    std::fs::write(docs.join("benchmarks-inside.json"), rows_json(report)?)?;
    std::fs::write(docs.join("benchmarks-inside.md"), text(report, ground))?;
    println!("wrote {}", docs.join("benchmarks-inside.md").display());
    Ok(())
}

const HEAD: &str = "# Inside a container

Written by `make bench PART=inside`; to repeat it, run that. What a container's programs do once it runs, on the runtimes
in turn: each in a root file system of its own, an overlay over the same Debian, of which the host has read what the
program needs; what is written goes to the host's memory. *Own disk* is ours as in a pod of Kubernetes, or with
`root.writes = \"disk\"`; *EROFS* is by `ctr run`, on containerd 2.4's EROFS snapshotter: the Debian is one
layer, and what is written goes to an ext4 in a file in the host's memory, which the host mounts for runc and the guest for
ours. Behind each figure, how it compares with runc's: above 1 is better than
runc, of times as of rates. runc, crun and runsc are Debian's; runsc runs without a network. Rows for programs:
[benchmarks-inside.json](benchmarks-inside.json).

";

fn text(report: &Report, ground: Ground) -> String {
    let mut page = format!("{HEAD}{}", clock(ground));
    let (mut names, mut runtimes) = (Vec::new(), Vec::new());
    for row in &report.rows {
        for (list, name) in [(&mut names, &row.name), (&mut runtimes, &row.runtime)] {
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }
    push(&mut page, format_args!("\n| what |"));
    for runtime in &runtimes {
        push(&mut page, format_args!(" {runtime} |"));
    }
    push(&mut page, format_args!("\n|---|{}\n", "---:|".repeat(runtimes.len())));
    for name in names {
        let of =
            |runtime: &str| report.rows.iter().find(|r| r.name == *name && r.runtime == runtime);
        let unit = of("runc").map_or("", |row| &row.unit);
        push(&mut page, format_args!("| {name}, {unit} |"));
        for runtime in &runtimes {
            let figure = of(runtime).map_or_else(|| "failed".to_owned(), figure);
            push(&mut page, format_args!(" {figure} |"));
        }
        push(&mut page, format_args!("\n"));
    }
    let of_all = |row: &&Row| {
        let has = |runtime: &&String| {
            report.rows.iter().any(|r| r.name == row.name && r.runtime == **runtime)
        };
        runtimes.iter().all(has)
    };
    push(&mut page, format_args!("| **index**: geometric mean of what none failed |"));
    for runtime in &runtimes {
        let of_it = report.rows.iter().filter(|row| row.runtime == **runtime);
        let index = index(of_it.filter(of_all));
        push(&mut page, format_args!(" **{index:.2}** |"));
    }
    push(&mut page, format_args!("\n"));
    for failure in &report.failures {
        let (name, runtime, said) = (&failure.name, &failure.runtime, &failure.said);
        push(&mut page, format_args!("\nFailed: {name} on {runtime}: {said}\n"));
    }
    push(&mut page, format_args!("\n| | |\n|---|---|\n"));
    for (name, value) in &report.machine {
        push(&mut page, format_args!("| {name} | {value} |\n"));
    }
    push(&mut page, format_args!("| runs of each | {} |\n", report.runs));
    page
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

fn index<'a>(rows: impl Iterator<Item = &'a Row>) -> f64 {
    let logarithms: Vec<f64> = rows.filter_map(times_runc).map(f64::ln).collect();
    (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::lab::bench::{Failure, compare_to_runc};

    #[test]
    fn times_and_rates_both_say_how_much_better() {
        let row = |name, unit, runtime, value: f64| Row::of(name, unit, runtime, &[value]).unwrap();
        let mut rows = vec![
            row("git", "s", "runc", 2.0),
            row("git", "s", "kata-like", 4.0),
            row("pipe", "/s", "runc", 100.0),
            row("pipe", "/s", "kata-like", 800.0),
            row("fork", "/s", "runc", 9.0),
        ];
        compare_to_runc(&mut rows);
        let failures = vec![Failure {
            name: "fork".into(),
            runtime: "kata-like".into(),
            said: "it fell over".into(),
        }];
        let report = Report { machine: vec![], runs: 1, rows, phases: vec![], failures };
        let page = text(&report, Ground::Emulated);
        assert!(page.contains("| git, s | 2.00 (1.00) | 4.00 (0.50) |"), "{page}");
        assert!(page.contains("| pipe, /s | 100 (1.00) | 800 (8.00) |"), "{page}");
        assert!(page.contains("| fork, /s | 9.00 (1.00) | failed |"), "{page}");
        assert!(page.contains("| **1.00** | **2.00** |"), "{page}");
        assert!(page.contains("Failed: fork on kata-like: it fell over"), "{page}");
    }
}
