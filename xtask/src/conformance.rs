//! `cargo xtask conformance`: Kubernetes' suite for container runtimes on our handlers and on runc's, side by side.

mod table;

use crate::count::Count;
use crate::{build, e2e, lab};
use ::lab::cache::Step;
use ::lab::client::Client;
use ::lab::conformance::report::{self, Outcome, Report};
use ::lab::conformance::{self, differences};
use ::lab::containerd::Version;
use ::lab::machine::{Lab, Purpose};
use ::lab::wire::Exec;
use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where a run leaves its report in the lab.
const REPORT: &str = "/tmp/conformance.json";

/// Longer than any case may take.
const SILENCE: Duration = Duration::from_secs(600);

/// The one that the others are compared with.
const RUNC: &str = "runc";

/// Ours by containerd's sandbox API, which 1.7 does not speak to shims.
const SANDBOX_API: &str = "kata-like-sandbox";

/// Ours on containerd's EROFS snapshotter, which 1.7 does not have.
const EROFS: &str = "kata-like-erofs";

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// 1.7, 2.4 or both
    #[arg(long, default_value = "both")]
    containerd: String,
    /// Handlers of containerd's configuration to compare with runc's
    #[arg(long, default_values = ["kata-like", SANDBOX_API, EROFS])]
    handler: Vec<String>,
    /// Not on runc: of it stays what earlier runs left
    #[arg(long)]
    ours: bool,
    /// Only cases whose names this regular expression matches; of the others stays what earlier runs left
    #[arg(long)]
    focus: Option<String>,
    /// How many labs share the runs [default: 2 where memory allows]
    #[arg(long)]
    labs: Option<usize>,
    /// Take target/install as it is
    #[arg(long)]
    no_build: bool,
    /// Run nothing: compare, and write the table, by what earlier runs left in target/conformance
    #[arg(long)]
    no_run: bool,
}

/// One run of the suite: a column of the table.
#[derive(Debug)]
struct Column {
    containerd: Version,
    handler: String,
    /// The commits that it was run with.
    tree: String,
    report: Report,
}

/// Runs the suite on each handler, and writes the table.
///
/// # Errors
/// When something doesn't build, no lab comes up, or the suite doesn't run; what fails there is counted.
pub fn run(arguments: &Arguments) -> Result<Count> {
    let versions = match &*arguments.containerd {
        "both" => Version::ALL.to_vec(),
        name => vec![Version::from_name(name).context("--containerd wants 1.7, 2.4 or both")?],
    };
    let mut runs = pairs(&versions, &arguments.handler);
    runs.retain(|(_, handler)| !arguments.ours || handler != RUNC);
    if !arguments.no_run {
        run_all(&runs, arguments)?;
    }
    // What was not run now stays in the table as it was.
    let mut columns = Vec::new();
    for (containerd, handler) in pairs(&Version::ALL, &arguments.handler) {
        let [report, tree] = ["json", "tree"].map(|kind| kept(containerd, &handler, kind));
        if report.exists() {
            let tree =
                std::fs::read_to_string(&tree).with_context(|| tree.display().to_string())?;
            columns.push(Column { containerd, handler, tree, report: report::load(&report)? });
        }
    }
    let count = compare(&columns);
    let file = build::workspace().join("docs/compatibility.md");
    table::write(&file, &columns)?;
    println!("wrote {}", file.display());
    println!("[conformance] {} passed, {} failed", count.passed, count.failed);
    Ok(count)
}

/// Each of these handlers, and runc's, on each of these that can have it; the newest first.
fn pairs(versions: &[Version], handlers: &[String]) -> Vec<(Version, String)> {
    let handlers: Vec<_> = std::iter::once(RUNC).chain(handlers.iter().map(|h| &**h)).collect();
    let is_there = |containerd, handler: &str| {
        containerd != Version::V1_7 || ![SANDBOX_API, EROFS].contains(&handler)
    };
    let of = |containerd: &Version| {
        let there = handlers.iter().filter(|handler| is_there(*containerd, handler));
        there.map(|handler| (*containerd, (*handler).to_owned())).collect::<Vec<_>>()
    };
    versions.iter().rev().flat_map(of).collect()
}

/// Runs the suite on each of these handlers, side by side where there is room; the reports are kept.
fn run_all(runs: &[(Version, String)], arguments: &Arguments) -> Result<()> {
    let prepared = conformance::prepare()?;
    if !arguments.no_build {
        build::product()?;
    }
    // It may be another by the time that the last run ends.
    let tree = tree()?;
    let worth = e2e::worth(lab::ground()?, usize::MAX);
    let labs = Lab::side_by_side(arguments.labs.unwrap_or(worth).min(runs.len()))?;
    let queue = Mutex::new(runs.iter().cloned().collect::<VecDeque<_>>());
    let round = Round { prepared, focus: arguments.focus.as_deref(), tree, queue };
    std::thread::scope(|scope| {
        let running: Vec<_> = labs.iter().map(|lab| scope.spawn(|| round.lab(lab))).collect();
        running.into_iter().map(build::joined).fold(Ok(()), Result::and)
    })?;
    labs.iter().skip(1).try_for_each(Lab::down)
}

/// Where the outcomes of runs are kept, and what the last said.
fn kept(containerd: Version, handler: &str, kind: &str) -> PathBuf {
    let name = format!("{}-{handler}.{kind}", containerd.name());
    build::target_dir().join("conformance").join(name)
}

/// The commit that is checked out.
fn tree() -> Result<String> {
    let mut git = Command::new("git");
    let output = git.args(["describe", "--always", "--exclude=*"]).current_dir(build::workspace());
    let output = output.output().context("git")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Starts the containerds anew: what a runtime can do they ask once, and theirs was not there yet.
fn restart(client: &Client) -> Result<()> {
    let ends = Version::ALL.map(|version| {
        format!(
            "pid=$(cat {}) && kill $pid && while kill -0 $pid; do sleep 0.1; done",
            version.pid_file()
        )
    });
    let script = format!("{}; /run/lab/lab-agent services", ends.join("; "));
    let (status, out, err) = client.output(&["sh", "-c", &script])?;
    ensure!(status == 0, "the containerds did not start: {out}{err}");
    Ok(())
}

/// The runs that are still to be made; labs take from them.
struct Round<'a> {
    prepared: PathBuf,
    focus: Option<&'a str>,
    /// The commit that they are made with.
    tree: String,
    queue: Mutex<VecDeque<(Version, String)>>,
}

impl Round<'_> {
    /// Makes runs in a lab until none is left.
    fn lab(&self, lab: &Lab) -> Result<()> {
        let client = lab::up(lab, Purpose::Release)?;
        lab::install(&client)?;
        client.put(&[(&self.prepared, Path::new(conformance::DIR))])?;
        restart(&client)?;
        let next = || self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some((containerd, handler)) = next() {
            self.run(&client, containerd, &handler)?;
        }
        Ok(())
    }

    /// Runs the suite once.
    fn run(&self, client: &Client, containerd: Version, handler: &str) -> Result<()> {
        let name = format!("{handler} on {}", containerd.name());
        let log = kept(containerd, handler, "log");
        log.parent().map(std::fs::create_dir_all).transpose()?;
        let step = Step::begin("conformance", "10 to 30 minutes each");
        let mut argv = vec![conformance::RUN, containerd.suffix(), handler, REPORT];
        // Always in the same order: what one case leaves behind meets the same next one.
        argv.extend(["--ginkgo.v", "--ginkgo.seed=1", "--ginkgo.timeout=3h"]);
        let focus = self.focus.map(|words| format!("--ginkgo.focus={words}"));
        argv.extend(focus.as_deref());
        let argv = argv.into_iter().map(str::to_owned).collect();
        let mut said = Said { log: File::create(&log)?, step: &step, name: &name, cases: 0 };
        let exec = Exec { argv, ..Exec::default() };
        let status = client.exec_watched(exec, SILENCE, None, &mut said)?;
        ensure!(matches!(status, 0 | 1), "the suite ended with {status}: see {}", log.display());
        let told = kept(containerd, handler, "ginkgo");
        client.get(Path::new(REPORT), &told)?;
        let [of_report, of_tree] = ["json", "tree"].map(|kind| kept(containerd, handler, kind));
        let mut report = Report::new();
        let mut tree = self.tree.clone();
        if self.focus.is_some() && of_report.exists() {
            report = report::load(&of_report)?;
            let before = std::fs::read_to_string(&of_tree)?;
            tree = if before.contains(&tree) { before } else { format!("{before} and {tree}") };
        }
        report.extend(report::read(&told)?);
        std::fs::write(of_tree, tree)?;
        report::save(&report, &of_report)?;
        step.end();
        Ok(())
    }
}

/// What the suite says: kept, and its cases counted.
struct Said<'a> {
    log: File,
    step: &'a Step,
    name: &'a str,
    cases: usize,
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.log.write_all(bytes)?;
        // The end of the bullet that each case that has run is shown by.
        self.cases += bytes.windows(3).filter(|three| *three == "•".as_bytes()).count();
        self.step.is_at(format_args!("{}: {} cases", self.name, self.cases));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.log.flush()
    }
}

/// Counts the cases that end on ours as on runc, but for the known differences, and tells of the others.
fn compare(columns: &[Column]) -> Count {
    let mut count = Count::default();
    let runcs = columns.iter().filter(|column| column.handler == RUNC);
    for runc in runcs {
        let ours = columns
            .iter()
            .filter(|column| column.handler != RUNC && column.containerd == runc.containerd);
        for ours in ours {
            let ran = runc.report.iter().filter(|(_, outcome)| **outcome != Outcome::LeftOut);
            for (case, outcome) in ran {
                let Some(why) = verdict(case, outcome, ours.report.get(case)) else {
                    count.passed += 1;
                    continue;
                };
                count.failed += 1;
                println!(
                    "[conformance] {} {}: {case}: {why}",
                    ours.containerd.name(),
                    ours.handler
                );
            }
        }
    }
    count
}

/// Why a case's outcome on ours is not right; none: it is.
fn verdict(case: &str, runc: &Outcome, ours: Option<&Outcome>) -> Option<String> {
    let known = differences::reason(case);
    match (runc, ours) {
        (Outcome::Passed, Some(Outcome::Passed)) if known.is_some() => {
            Some("passes, and is listed as one that can't".to_owned())
        }
        (Outcome::Passed, Some(Outcome::Failed(words) | Outcome::Skipped(words)))
            if known.is_none() =>
        {
            Some(words.clone())
        }
        (Outcome::Passed, None) => Some("was not run".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_on_runc_has_to_pass() {
        let failed = Outcome::Failed("words".to_owned());
        let skipped = Outcome::Skipped("not there".to_owned());
        let passed = Outcome::Passed;
        assert_eq!(verdict("a", &passed, Some(&passed)), None);
        assert_eq!(verdict("a", &passed, Some(&failed)).as_deref(), Some("words"));
        assert_eq!(verdict("a", &passed, Some(&skipped)).as_deref(), Some("not there"));
        assert!(verdict("a", &passed, None).is_some());
        assert_eq!(verdict("a", &failed, Some(&failed)), None);
        let (known, _) = differences::ALL[0];
        assert_eq!(verdict(known, &passed, Some(&failed)), None);
        assert!(verdict(known, &passed, Some(&passed)).is_some());
    }
}
