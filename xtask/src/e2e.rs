//! The end-to-end tests: built here, run in labs, which ask for one after another.

mod queue;
mod runs;

use crate::count::Count;
use crate::{build, lab};
use ::lab::host::Ground;
use ::lab::machine::Lab;
use ::lab::pods::{NRI_PLUGIN, NRI_PLUGIN_DIR};
use anyhow::{Context, Result, ensure};
use queue::Queue;
use runs::{Patience, Round};
use std::path::Path;
use std::process::Command;

/// With fewer tests a second lab costs more than it brings.
const WORTH_A_SECOND: usize = 12;
/// What a lab may take, KiB: its memory, and QEMU's own.
const LAB_KIB: u64 = 9 << 19;

/// In the lines of tests that want the disk of programs.
const PROGRAMS: &str = " programs::";
/// In those of tests that want Kubernetes' suite and its images.
const CONFORMANCE: &str = " conformance::";
/// In those of tests that want a plugin of nodes.
const NRI: &str = " pods::nri::";

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
    /// How many containers a test of many makes [default: 3, with --all 8]
    #[arg(long)]
    many: Option<u32>,
    /// How many labs share the tests [default: 2 where memory allows and it is worth it]
    #[arg(long)]
    labs: Option<usize>,
    /// Also what `make test` leaves out: what takes minutes, and each test against each containerd that matters to it
    #[arg(long)]
    all: bool,
    /// Take target/install as it is
    #[arg(long)]
    no_build: bool,
    /// Only name the tests
    #[arg(long)]
    list: bool,
}

impl Arguments {
    /// What a change is tested by, or every test there is; or what `filter` names of it.
    pub fn of_a_suite(filter: Option<&str>, all: bool) -> Self {
        Self {
            filters: filter.map(str::to_owned).into_iter().collect(),
            containerd: "both".to_owned(),
            runtime: None,
            many: None,
            labs: None,
            all,
            no_build: false,
            list: false,
        }
    }

    fn many(&self) -> u32 {
        self.many.unwrap_or(if self.all { 8 } else { 3 })
    }

    /// The arguments of the tests' own program.
    fn of_program(&self) -> Vec<String> {
        let mut argv = vec!["--containerd".to_owned(), self.containerd.clone()];
        argv.extend(["--many".to_owned(), self.many().to_string()]);
        argv.extend(self.runtime.iter().flat_map(|name| ["--runtime".to_owned(), name.clone()]));
        argv.extend(self.all.then(|| "--all".to_owned()));
        argv.extend(self.filters.iter().cloned());
        argv
    }
}

/// Builds what is tested, brings labs up, and has them run the tests.
///
/// # Errors
/// When something doesn't build or no lab comes up; tests that fail are counted.
pub fn run(arguments: &Arguments) -> Result<Count> {
    let program = build::lab_program("e2e")?;
    let tests = list(&program, arguments)?;
    if arguments.list {
        for test in &tests {
            println!("{test}");
        }
        return Ok(Count { passed: 1, failed: 0 });
    }
    if tests.is_empty() {
        println!("[end to end] no test has such a name, or it is of `make test-all` (--all)");
        return Ok(Count::default());
    }
    if !arguments.no_build {
        build::product()?;
    }
    let ground = lab::ground()?;
    let labs = Lab::side_by_side(arguments.labs.unwrap_or_else(|| worth(ground, tests.len())))?;
    println!("[end to end] {} tests, labs side by side: {}", tests.len(), labs.len());
    let has = |words| tests.iter().any(|test| test.contains(words));
    let (with_programs, with_conformance) = (has(PROGRAMS), has(CONFORMANCE));
    let with_nri = has(NRI);
    let queue = Queue::new(tests);
    let patience = Patience { many: arguments.many(), all: arguments.all };
    let mut round = Round::new(&program, arguments.of_program(), patience, &queue);
    if with_programs {
        round.attach(::lab::programs::prepare()?);
    }
    if with_conformance {
        round.put(::lab::conformance::prepare()?, ::lab::conformance::DIR);
    }
    if with_nri {
        let key = NRI_PLUGIN.key().context("the plugin of nodes is built with Go: install it")?;
        round.put(NRI_PLUGIN.prepare(&key)?, NRI_PLUGIN_DIR);
    }
    round.run_in(&labs)?;
    let sum = queue.count();
    // Again at the end: who reads the last lines alone knows what failed, and why.
    for failure in queue.failures() {
        println!("[end to end] {failure}");
    }
    if sum.failed > 0 {
        labs.iter().for_each(runs::keep_artifacts);
    }
    // One to look around in is enough.
    labs.iter().skip(1).try_for_each(Lab::down)?;
    println!("[end to end] {} passed, {} failed", sum.passed, sum.failed);
    Ok(sum)
}

/// The tests' own list, a line each; the program is static, and so runs here as well.
fn list(program: &Path, arguments: &Arguments) -> Result<Vec<String>> {
    let mut list = Command::new(program);
    let output =
        list.args(arguments.of_program()).arg("--list").output().context("list the tests")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// How many labs so many tests are worth on this machine. On its own kernel labs would see each other.
pub fn worth(ground: Ground, tests: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let room = memory.is_some_and(|kib| kib >= 2 * LAB_KIB);
    let two = ground == Ground::Emulated && tests > WORTH_A_SECOND && cpus > 1 && room;
    if two { 2 } else { 1 }
}

/// KiB that programs may still take, of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_that_is_left_is_read() {
        let meminfo = "MemTotal:       24576000 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(available(meminfo), Some(12_345_678));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_single_lab_does_for_few_tests_and_for_the_hosts_kernel() {
        assert_eq!(worth(Ground::Emulated, WORTH_A_SECOND), 1);
        assert_eq!(worth(Ground::Host, 1000), 1);
    }
}
