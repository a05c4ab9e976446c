//! The project's own commands; `make` calls them, and so may you: `cargo xtask --help`.

mod ahead;
mod bench;
mod build;
mod conformance;
mod count;
mod demo;
mod e2e;
mod fuzz;
mod lab;
mod suites;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Commands of the project itself")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the product as it is installed, into target/install
    Build,
    /// The machine in which KVM is real
    #[command(subcommand)]
    Lab(lab::Command),
    /// Run end-to-end tests in the lab
    E2e(e2e::Arguments),
    /// Test a change: formatting, lints, unit tests, corpora of fuzz targets, end-to-end tests
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Test a release: also the end-to-end tests that take minutes, each containerd where they differ, and fuzzing
        #[arg(long)]
        all: bool,
    },
    /// Fuzz what reads bytes of guests and images
    Fuzz(fuzz::Arguments),
    /// Check formatting and lints
    Lint,
    /// Run Kubernetes' suite for container runtimes on ours and on runc, and write docs/compatibility.md
    Conformance(conformance::Arguments),
    /// Measure against runc and write docs/benchmarks.*
    Bench(bench::Arguments),
    /// Build everything and run a container on it
    Demo,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build => build::product().map(|()| 0),
        Command::Lab(command) => lab::run(command),
        Command::E2e(arguments) => e2e::run(&arguments).map(count::Count::status),
        Command::Test { filter, all } => {
            suites::test(filter.as_deref(), all).map(count::Count::status)
        }
        Command::Fuzz(arguments) => fuzz::run(&arguments).map(count::Count::status),
        Command::Lint => suites::lint().map(count::Count::status),
        Command::Conformance(arguments) => conformance::run(&arguments).map(count::Count::status),
        Command::Bench(arguments) => bench::run(&arguments).map(|()| 0),
        Command::Demo => demo::run().map(|()| 0),
    };
    finish(result)
}

fn finish(result: Result<i32>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
