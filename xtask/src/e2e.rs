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

const PROGRAM: &str = "/run/lab/e2e";
const ARTIFACTS: &str = "/tmp/e2e-artifacts";

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
    let program = build::lab_program("e2e")?;
    let client = lab::up(&Lab::named_by_environment()?)?;
    lab::install(&client)?;
    client.put(&[(&program, Path::new(PROGRAM))])?;
    let mut sum = Count::default();
    for (round, version) in versions.iter().enumerate() {
        println!("[end to end] containerd {}", version.name());
        sum = sum + against(&client, *version, round > 0, arguments)?;
    }
    if sum.failed > 0 {
        keep_artifacts(&client);
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

/// One run of the program. `again`: tests that no containerd takes part in have been run.
fn against(client: &Client, version: Version, again: bool, arguments: &Arguments) -> Result<Count> {
    let mut argv = vec![PROGRAM, "--containerd", version.name(), "--artifacts", ARTIFACTS];
    argv.extend(again.then_some("--skip-once"));
    argv.extend(arguments.list.then_some("--list"));
    argv.extend(arguments.runtime.iter().flat_map(|runtime| ["--runtime", runtime.as_str()]));
    argv.extend(arguments.filters.iter().map(String::as_str));
    let argv = argv.into_iter().map(str::to_owned).collect();
    let mut watched = Watched::default();
    client.exec_to(Exec { argv, ..Exec::default() }, None, &mut watched, &mut std::io::stderr())?;
    if arguments.list {
        return Ok(Count { passed: 1, failed: 0 });
    }
    let count = watched.result().context("the tests ended without a result")?;
    // A filter may name none of this round's tests; the sum over the rounds decides.
    Ok(count)
}

fn keep_artifacts(client: &Client) {
    let kept = build::target_dir().join("e2e-artifacts");
    match client.get(Path::new(ARTIFACTS), &kept) {
        Ok(()) => println!("[end to end] logs of what failed: {}", kept.display()),
        Err(error) => println!("[end to end] their logs could not be fetched: {error:#}"),
    }
}

/// Passes output on to ours and keeps the last line.
#[derive(Default)]
struct Watched {
    last: Vec<u8>,
    line: Vec<u8>,
}

impl Watched {
    fn result(&self) -> Option<Count> {
        let last = if self.line.is_empty() { &self.last } else { &self.line };
        plain_result(&String::from_utf8_lossy(last))
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                self.last = std::mem::take(&mut self.line);
            } else {
                self.line.push(byte);
            }
        }
        std::io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}
