//! All tests, one suite after another, and their sum.

use crate::count::Count;
use crate::{ahead, build, e2e, fuzz};
use ::lab::machine::Purpose;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

/// Runs every suite, or of each what `filter` names, and with `all` every end-to-end test; the last line is the sum.
///
/// # Errors
/// When a suite can't be run at all; tests that fail are counted.
pub fn test(filter: Option<&str>, all: bool) -> Result<Count> {
    let start = Instant::now();
    let mut sum = std::thread::scope(|scope| -> Result<Count> {
        // What fails here fails the end-to-end tests, which want it next, and is told of there.
        let purpose = if all { Purpose::Release } else { Purpose::Change };
        scope.spawn(move || drop(ahead::make(purpose)));
        let lint = if filter.is_none() { lint()? } else { Count::default() };
        let checked = lint + unit(filter)?;
        // The corpora are among the unit tests; what is new is looked for with every other test.
        let fuzzed = all.then(|| or_failed(fuzz::run(&fuzz::Arguments::short(filter))));
        Ok(checked + fuzzed.unwrap_or_default())
    })?;
    sum = sum + or_failed(e2e::run(&e2e::Arguments::of_a_suite(filter, all)));
    println!("all suites took {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(sum)
}

/// What can't be built or brought up is a failure to be told beside the others.
fn or_failed(result: Result<Count>) -> Count {
    result.unwrap_or_else(|error| {
        println!("error: {error:#}");
        Count::of(false)
    })
}

/// Checks formatting and lints of the whole workspace.
///
/// # Errors
/// When cargo can't be run.
pub fn lint() -> Result<Count> {
    let checks: [(&str, &[&str]); 2] = [
        ("formatting", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ];
    let check = |(name, arguments): (&str, &[&str])| -> Result<Count> {
        let _turn = build::turn();
        println!("[{name}] … (usually 10 s, from nothing 2 minutes)");
        let status = build::cargo().args(arguments).status().context("cargo")?;
        println!("[{name}] {}", if status.success() { "ok" } else { "FAILED" });
        Ok(Count::of(status.success()))
    };
    checks.into_iter().map(check).sum()
}

/// Runs the workspace's unit tests.
fn unit(filter: Option<&str>) -> Result<Count> {
    let _turn = build::turn();
    println!("[unit tests] … (usually 1 minute, from nothing 5)");
    let mut cargo = build::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(filter).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    let mut sum = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(count) = libtest_result(&line) {
            sum = sum + count;
        }
        if !line.is_empty() && !line.ends_with("... ok") {
            println!("{line}");
        }
    }
    // What doesn't compile has no result line.
    if !child.wait()?.success() && sum.failed == 0 {
        sum.failed = 1;
    }
    println!("[unit tests] {} passed, {} failed", sum.passed, sum.failed);
    Ok(sum)
}

/// The counts in `test result: ok. 3 passed; 0 failed; …`.
fn libtest_result(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |what: &str| -> Option<u32> {
        rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_nothing_else_is() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; finished in 0.02s";
        assert_eq!(libtest_result(line), Some(Count { passed: 12, failed: 3 }));
        for other in ["test a::result: ok", "12 passed", "failed: x", "all passed, 0 failed"] {
            assert_eq!(libtest_result(other), None);
        }
    }
}
