//! The end-to-end tests: built here, run in the lab, so that no step of theirs waits for the way there.

use crate::suites::{Count, plain_result};
use crate::{build, lab};
use ::lab::client::Client;
use ::lab::containerd::Version;
use ::lab::machine::Lab;
use ::lab::wire::Exec;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = "/run/lab/e2e";
const ARTIFACTS: &str = "/tmp/e2e-artifacts";
/// How many labs a round may use up.
const LABS: u32 = 3;
/// Longer than any test may take: a lab that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(720);

/// Which tests to run, and against what.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains one of these
    filters: Vec<String>,
    /// 1.7, 2.4 or both
    #[arg(long, default_value = "both")]
    containerd: String,
    /// Another runtime, to test the tests: io.containerd.runc.v2
    #[arg(long)]
    runtime: Option<String>,
    /// How many containers a test of many makes
    #[arg(long, default_value_t = 8)]
    many: u32,
    /// Take target/install as it is
    #[arg(long)]
    no_build: bool,
    /// Only name the tests
    #[arg(long)]
    list: bool,
}

impl Arguments {
    /// Everything, or what `filter` names, against both containerds.
    pub fn all(filter: Option<&str>) -> Self {
        Self {
            filters: filter.map(str::to_owned).into_iter().collect(),
            containerd: "both".to_owned(),
            runtime: None,
            many: 8,
            no_build: false,
            list: false,
        }
    }
}

/// Builds what is tested, brings the lab up, runs the tests in it.
///
/// # Errors
/// When something doesn't build or the lab doesn't come up; tests that fail are counted.
pub fn run(arguments: &Arguments) -> Result<Count> {
    let versions = versions(&arguments.containerd)?;
    if !arguments.no_build {
        build::product()?;
    }
    let lab = Lab::named_by_environment()?;
    let mut sum = Count::default();
    let mut failures = Vec::new();
    for (round, version) in versions.iter().enumerate() {
        println!("[end to end] containerd {}", version.name());
        sum = sum + against(&lab, *version, round > 0, arguments, &mut failures)?;
    }
    // Again at the end: who reads the last lines alone knows what failed, and why.
    for failure in failures {
        println!("[end to end] {failure}");
    }
    if sum.failed > 0 {
        keep_artifacts(&lab.client()?);
    }
    println!("[end to end] {} passed, {} failed", sum.passed, sum.failed);
    Ok(sum)
}

fn versions(word: &str) -> Result<Vec<Version>> {
    match (word, Version::from_name(word)) {
        ("both", _) => Ok(Version::ALL.to_vec()),
        (_, Some(version)) => Ok(vec![version]),
        _ => bail!("--containerd wants 1.7, 2.4 or both, not {word}"),
    }
}

/// Brings the lab up, with the product and the tests in it.
fn prepare(lab: &Lab) -> Result<Client> {
    let program = build::lab_program("e2e")?;
    let client = lab::up(lab)?;
    lab::install(&client)?;
    client.put(&[(&program, Path::new(PROGRAM))])?;
    Ok(client)
}

/// One round of the tests, in as many labs as it takes: a test that takes the lab with it has failed, the
/// others go on in a new one. `again`: tests that no containerd takes part in have been run.
fn against(
    lab: &Lab,
    version: Version,
    again: bool,
    arguments: &Arguments,
    failures: &mut Vec<String>,
) -> Result<Count> {
    let many = arguments.many.to_string();
    // A test of many says nothing until it ends: 6 s for each, as its own deadline has it.
    let silence = SILENCE + Duration::from_secs(6) * arguments.many;
    let mut argv = vec![PROGRAM, "--containerd", version.name(), "--artifacts", ARTIFACTS];
    argv.extend(["--many", &many]);
    argv.extend(again.then_some("--skip-once"));
    argv.extend(arguments.list.then_some("--list"));
    argv.extend(arguments.runtime.iter().flat_map(|runtime| ["--runtime", runtime.as_str()]));
    argv.extend(arguments.filters.iter().map(String::as_str));
    let argv: Vec<String> = argv.into_iter().map(str::to_owned).collect();
    let (mut count, mut begun) = (Count::default(), 0);
    for _ in 0..LABS {
        let client = prepare(lab)?;
        let argv = argv.iter().cloned().chain(["--skip".to_owned(), begun.to_string()]).collect();
        let mut watched = Watched::default();
        let exec = Exec { argv, ..Exec::default() };
        let Err(error) = client.exec_watched(exec, silence, &mut watched) else {
            if arguments.list {
                return Ok(Count { passed: 1, failed: 0 });
            }
            failures.append(&mut watched.failures);
            // A filter may name none of this round's tests; the sum over the rounds decides.
            return Ok(count + watched.result().context("the tests ended without a result")?);
        };
        println!("[end to end] FAILED with the lab: {error:#}\n{}", lab.said());
        failures.append(&mut watched.failures);
        failures.push(format!("failed: {} a lab that went away", version.name()));
        lab.down()?;
        count = count + watched.finished + Count { passed: 0, failed: 1 };
        begun += watched.finished.passed + watched.finished.failed + 1;
    }
    bail!("{LABS} labs went away in one round")
}

fn keep_artifacts(client: &Client) {
    let kept = build::target_dir().join("e2e-artifacts");
    match client.get(Path::new(ARTIFACTS), &kept) {
        Ok(()) => println!("[end to end] logs of what failed: {}", kept.display()),
        Err(error) => println!("[end to end] their logs could not be fetched: {error:#}"),
    }
}

/// Passes output on to ours, counts the tests that end, and keeps the last line.
#[derive(Default)]
struct Watched {
    finished: Count,
    /// The lines that say what failed.
    failures: Vec<String>,
    last: Vec<u8>,
    line: Vec<u8>,
}

impl Watched {
    fn result(&self) -> Option<Count> {
        plain_result(&String::from_utf8_lossy(&self.last))
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        self.last = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&self.last);
        if let Some(count) = one_result(&line) {
            self.finished = self.finished + count;
        }
        if line.starts_with("failed: ") {
            self.failures.push(line.into_owned());
        }
    }
}

/// The verdict in `[3/66] 1.7 run::echoes ... ok (2.5 s)`.
fn one_result(line: &str) -> Option<Count> {
    let (name, verdict) = line.rsplit_once(" ... ")?;
    let passed = verdict.starts_with("ok (");
    (name.starts_with('[') && (passed || verdict.starts_with("FAILED (")))
        .then_some(Count { passed: u32::from(passed), failed: u32::from(!passed) })
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.take(bytes);
        std::io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_ended_are_counted_and_the_last_line_is_the_result() {
        let mut watched = Watched::default();
        let said =
            "[1/3] 1.7 run::echoes ... ok (2.5 s)\n[2/3] 1.7 a ... FAILED (1.0 s)\n---- a ... ok\n";
        watched.take(said.as_bytes());
        assert_eq!(watched.finished, Count { passed: 1, failed: 1 });
        assert_eq!(watched.result(), None);
        watched.take(b"failed: 1.7 a: reason\n");
        assert_eq!(watched.failures, ["failed: 1.7 a: reason"]);
        watched.take(b"1 passed, 1 failed\n");
        assert_eq!(watched.result(), Some(Count { passed: 1, failed: 1 }));
    }
}
