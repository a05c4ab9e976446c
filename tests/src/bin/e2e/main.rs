//! The end-to-end tests: run inside the machine whose KVM is real (the lab, or a host that has one).
//!
//! `e2e [--containerd 1.7|2.4] [--artifacts DIR] [--list] [FILTER…]`; the last line is `N passed, N failed`.
//! Each file beside this one is a topic; each test leaves nothing behind, and [`leaks`] asserts it.

mod boot;
mod bundle;
mod bundles;
mod command;
mod confinement;
mod context;
mod crash;
mod deadline;
mod disks;
mod exec;
mod inside;
mod layers;
mod leaks;
mod lifecycle;
mod logs;
mod machine;
mod memory;
mod oci;
mod odd_files;
mod outage;
mod pause;
mod ptrace;
mod report;
mod run;
mod shim;
mod spec;
mod stdin;
mod task_api;
mod terminal;
mod throughput;
mod update;
mod volumes;
mod wrong_settings;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use context::Context;
use lab::containerd::Version;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a test may take: several times what the longest needs on a machine that is idle.
const LIMIT: Duration = Duration::from_secs(600);

/// What a test of many has besides, for each of its containers.
const EACH: Duration = Duration::from_secs(6);

/// One test.
struct Case {
    name: &'static str,
    scope: Scope,
    run: fn(&Context) -> Result<()>,
}

/// How often a test runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Against each containerd.
    EachContainerd,
    /// No containerd takes part: once is enough, with the first.
    Once,
}

/// Makes the list of a topic's tests from their function names.
macro_rules! cases {
    ($scope:expr; $($name:ident),+ $(,)?) => {
        pub(crate) fn cases() -> Vec<crate::Case> {
            let topic = module_path!().rsplit("::").next().unwrap_or_default();
            vec![$(crate::Case {
                name: Box::leak(format!("{topic}::{}", stringify!($name)).into_boxed_str()),
                scope: $scope,
                run: $name,
            }),+]
        }
    };
}
pub(crate) use cases;

/// Runs the end-to-end tests on this machine.
#[derive(Parser)]
struct Arguments {
    /// Which containerd to run against.
    #[arg(long, default_value = "1.7")]
    containerd: String,
    /// Where logs of failed tests are kept.
    #[arg(long, default_value = "/tmp/e2e-artifacts")]
    artifacts: PathBuf,
    /// Another runtime, to test the tests.
    #[arg(long, default_value = context::RUNTIME)]
    runtime: String,
    /// Only names the tests.
    #[arg(long)]
    list: bool,
    /// Leaves out the tests that no containerd takes part in.
    #[arg(long)]
    skip_once: bool,
    /// Leaves out so many of the first: a run in another lab had begun them.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// How many containers a test of many makes.
    #[arg(long, default_value_t = 8)]
    many: u32,
    /// Only tests whose name contains one of these.
    filters: Vec<String>,
}

fn main() -> Result<()> {
    let inside: Vec<_> = std::env::args_os().skip(1).collect();
    if inside.first().is_some_and(|first| first == inside::FLAG) {
        return inside::main(&inside[1..]);
    }
    let arguments = Arguments::parse();
    let version = Version::from_name(&arguments.containerd)
        .with_context(|| format!("no containerd {:?} in the lab", arguments.containerd))?;
    let context = Context::new(version, &arguments.runtime, &arguments.artifacts, arguments.many);
    let chosen = choose(&arguments);
    if arguments.list {
        for case in &chosen {
            println!("{}", case.name);
        }
        return Ok(());
    }
    version.start()?;
    context.sweep()?;
    let limit = LIMIT + EACH * arguments.many;
    let (mut passed, mut failed) = (0, 0);
    for (number, case) in chosen.iter().enumerate().skip(arguments.skip) {
        let started = Instant::now();
        let mark = std::fs::metadata(version.log()).map_or(0, |log| log.len() as usize);
        let outcome =
            leaks::guarded(&context, |context| deadline::within(limit, || (case.run)(context)));
        let took = started.elapsed().as_secs_f32();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        let (of, on) = (chosen.len(), version.name());
        println!("[{}/{of}] {on} {} ... {verdict} ({took:.1} s)", number + 1, case.name);
        match outcome {
            Ok(()) => passed += 1,
            Err(error) => {
                report::failure(&context, case.name, &error, mark);
                println!("failed: {on} {}: {}", case.name, report::short(&error));
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if passed == 0 || failed > 0 {
        bail!("not every test passed");
    }
    Ok(())
}

fn choose(arguments: &Arguments) -> Vec<Case> {
    let topics: [fn() -> Vec<Case>; 24] = [
        run::cases,
        exec::cases,
        terminal::cases,
        lifecycle::cases,
        logs::cases,
        pause::cases,
        update::cases,
        memory::cases,
        disks::cases,
        leaks::cases,
        wrong_settings::cases,
        bundles::cases,
        oci::cases,
        spec::cases,
        volumes::cases,
        odd_files::cases,
        layers::cases,
        stdin::cases,
        confinement::cases,
        crash::cases,
        outage::cases,
        shim::cases,
        throughput::cases,
        boot::cases,
    ];
    let wanted = |case: &Case| {
        !(arguments.skip_once && case.scope == Scope::Once)
            && (arguments.filters.is_empty()
                || arguments.filters.iter().any(|f| case.name.contains(f.as_str())))
    };
    topics.iter().flat_map(|topic| topic()).filter(wanted).collect()
}
