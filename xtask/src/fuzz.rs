//! Fuzzing: builds the targets of fuzz/ with the compiler that builds everything else, and runs them side by side.
//!
//! What cargo-fuzz does with a nightly compiler, but for its address sanitizer: the coverage that libFuzzer goes
//! by takes stable flags only. One program has all targets: linking one each took longer than running them.

use crate::build;
use crate::count::Count;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "fuzz";
/// By this the program is told its target.
const CHOICE: &str = "FUZZ_TARGET";

/// Coverage of edges and compared values, as cargo-fuzz asks for it.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg fuzzing",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// An input may take so long, seconds, and so much memory, MiB.
const LIMITS: [&str; 2] = ["-timeout=20", "-rss_limit_mb=2048"];

/// What to fuzz, and how long.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only targets whose name contains this
    target: Option<String>,
    /// For each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

impl Arguments {
    /// Each target for a few seconds, or those that `filter` names: a test of a release.
    pub fn short(filter: Option<&str>) -> Self {
        Self { target: filter.map(str::to_owned), seconds: 3 }
    }
}

/// Builds the targets and runs them, as many at a time as there are CPUs; each is a test.
///
/// # Errors
/// When they don't build or don't start; a target that finds something is counted.
pub fn run(arguments: &Arguments) -> Result<Count> {
    let chosen = |name: &String| arguments.target.as_ref().is_none_or(|word| name.contains(word));
    let names: Vec<String> = targets()?.into_iter().filter(chosen).collect();
    if names.is_empty() {
        return Ok(Count::default());
    }
    let seconds = arguments.seconds;
    println!("[fuzzing] building … (usually 10 s, from nothing 4 minutes)");
    build()?;
    println!("[fuzzing] {seconds} s each");
    let count = side_by_side(&names, seconds)?;
    println!("[fuzzing] {} passed, {} failed", count.passed, count.failed);
    Ok(count)
}

/// A target keeps one CPU busy: as many run as there are.
fn side_by_side(names: &[String], seconds: u32) -> Result<Count> {
    let lanes = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let lane = || -> Result<Count> {
        let mut count = Count::default();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            count = count + fuzz(name, seconds)?;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        running.into_iter().map(build::joined).sum()
    })
}

fn folder() -> PathBuf {
    build::workspace().join("fuzz")
}

fn target_dir() -> PathBuf {
    build::target_dir().join("fuzz")
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder().join("src/targets")).context("fuzz/src/targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.retain(|name| name != "mod");
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    let _turn = build::turn();
    let status = build::cargo()
        .args(["build", "--quiet", "--locked", "--profile", PROFILE, "--target", TRIPLE])
        .args(["-p", "kata-like-fuzz", "--features", "libfuzzer", "--bin", "fuzz"])
        .arg("--target-dir")
        .arg(target_dir())
        // Build scripts and macros run on their own and get no flags, for a target is named.
        .env("RUSTFLAGS", FLAGS.join(" "))
        .status()
        .context("cargo")?;
    ensure!(status.success(), "the fuzz targets don't build ({status})");
    Ok(())
}

/// Runs one target on its corpus, then on what it makes of it. What reaches new code is kept out of the tree.
fn fuzz(name: &str, seconds: u32) -> Result<Count> {
    let found = target_dir().join("corpus").join(name);
    let crashes = target_dir().join("artifacts").join(name);
    for directory in [&found, &crashes] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let log = target_dir().join(format!("{name}.log"));
    let program = target_dir().join(TRIPLE).join(PROFILE).join("fuzz");
    let status = Command::new(&program)
        .env(CHOICE, name)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args(LIMITS)
        .arg("-print_final_stats=1")
        .args([&found, &folder().join("corpus").join(name)])
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        println!("[fuzzing] {name} ok{}", figures(&said));
    } else {
        println!(
            "[fuzzing] {name} FAILED ({status})\n{}",
            report(&said, &format!("{CHOICE}={name} {}", program.display()), &log)
        );
    }
    Ok(Count::of(status.success()))
}

/// How much was tried, in libFuzzer's words.
fn figures(said: &str) -> String {
    let after = |word: &str| {
        let rest = &said[said.rfind(word)? + word.len()..];
        rest.split_whitespace().next()
    };
    match (after("number_of_executed_units:"), after(" cov: ")) {
        (Some(inputs), Some(edges)) => format!(" ({inputs} inputs, {edges} edges)"),
        _ => String::new(),
    }
}

/// What was found, and how to see it again.
fn report(said: &str, program: &str, log: &Path) -> String {
    let telling =
        |line: &&str| ["panicked at", "SUMMARY", "ERROR:"].iter().any(|word| line.contains(word));
    let lines: Vec<&str> = said.lines().collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| telling(line)) {
        text.push_str(&format!("  {line}\n"));
        // A panic's message is on the line after its place.
        if line.contains("panicked at")
            && let Some(message) = lines.get(number + 1)
        {
            text.push_str(&format!("  {message}\n"));
        }
    }
    if let Some(input) =
        said.lines().rev().find_map(|line| line.split_once("Test unit written to "))
    {
        text.push_str(&format!("  input: {}\n", input.1));
        text.push_str(&format!("  again: {program} {}\n", input.1));
    }
    text + &format!("  log: {}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_told_with_its_input_and_how_to_see_it_again() {
        let said = "#9 NEW cov: 7 ft: 8\nthread 'x' panicked at a.rs:1:2:\nwhy\nstack\n\
            SUMMARY: libFuzzer: deadly signal\nartifact_prefix='/a/'; Test unit written to /a/crash-1\n";
        let told = report(said, "FUZZ_TARGET=blk /t/fuzz", Path::new("/t/blk.log"));
        for line in [
            "a.rs:1:2",
            "  why\n",
            "SUMMARY",
            "again: FUZZ_TARGET=blk /t/fuzz /a/crash-1",
            "log: /t/blk.log",
        ] {
            assert!(told.contains(line), "{told}");
        }
        let said = "#1 cov: 7 ft: 8\n#2 DONE cov: 12 ft: 9\nstat::number_of_executed_units: 2\n";
        assert_eq!(figures(said), " (2 inputs, 12 edges)");
        assert_eq!(figures(""), "");
    }
}
