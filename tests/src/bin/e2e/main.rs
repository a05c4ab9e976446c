//! The end-to-end tests: run inside the machine whose KVM is real (the lab, or a host that has one).
//!
//! `e2e [--all] [--containerd 1.7|2.4|both] [--artifacts DIR] [--list] [FILTER…]`; the last line is
//! `N passed, N failed`.
//! `e2e --ask` runs those whose lines of `--list` come on its standard input, one after another.
//! Each file beside this one is a topic; each test leaves nothing behind, and [`leaks`] asserts it.

mod as_runc;
mod boot;
mod bundle;
mod bundles;
mod cgroup;
mod clock;
mod command;
mod confinement;
mod conformance;
mod containerd_api;
mod context;
mod crash;
mod deadline;
mod deploy;
mod destinations;
mod devmapper;
mod disks;
mod erofs;
mod exec;
mod hardware;
mod i386;
mod inside;
mod layers;
mod leaks;
mod lifecycle;
mod limits;
mod logs;
mod machine;
mod memory;
mod network;
mod oci;
mod odd_files;
mod outage;
mod pasta;
mod pause;
mod pods;
mod programs;
mod ptrace;
mod report;
mod residue;
mod roots;
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

/// How many times as long a test of `--all` may take.
const LONGER: u32 = 4;

/// What a test of many has besides, for each of its containers.
const EACH: Duration = Duration::from_secs(6);

/// One test.
#[derive(Clone)]
struct Case {
    name: &'static str,
    scope: Scope,
    run: fn(&Context) -> Result<()>,
}

/// How often a test runs, and whether it has to be asked for.
///
/// What runs only with `--all` takes minutes, or goes further into what a test of each time has seen: a change is
/// to be tested in half an hour, and a release may take hours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Against each containerd: what they call the shim for, and how, is not the same.
    EachContainerd,
    /// Against one, and with `--all` against each.
    OneOrEach,
    /// Against one: it matters little which, or none takes part.
    Once,
    /// Against the newest: the others lack what it is about.
    Newest,
    /// Only with `--all`, against each.
    AllEach,
    /// Only with `--all`, as [`Scope::Once`].
    AllOnce,
    /// Only with `--all`, as [`Scope::Newest`].
    AllNewest,
}

impl Scope {
    /// Whether it has to be asked for.
    fn is_only_of_all(self) -> bool {
        matches!(self, Self::AllEach | Self::AllOnce | Self::AllNewest)
    }

    fn is_of_newest(self) -> bool {
        matches!(self, Self::Newest | Self::AllNewest)
    }

    fn is_of_each(self, all: bool) -> bool {
        matches!(self, Self::EachContainerd | Self::AllEach) || (self == Self::OneOrEach && all)
    }
}

impl Case {
    /// The containerds that it runs against when any may.
    fn versions(&self, all: bool) -> Vec<Version> {
        if self.scope.is_of_each(all) {
            Version::ALL.to_vec()
        } else if self.scope.is_of_newest() {
            vec![Version::V2_4]
        } else {
            // Some with each, and the same with the same each time.
            let sum: usize = self.name.bytes().map(usize::from).sum();
            vec![Version::ALL[sum % Version::ALL.len()]]
        }
    }
}

/// Makes the list of a topic's tests from their function names, by how often they run.
macro_rules! cases {
    ($($scope:expr; $($name:ident),+ $(,)?);+ $(;)?) => {
        pub(crate) fn cases() -> Vec<crate::Case> {
            let topic = module_path!().split_once("::").map_or("", |(_, topic)| topic);
            vec![$($(crate::Case {
                name: Box::leak(format!("{topic}::{}", stringify!($name)).into_boxed_str()),
                scope: $scope,
                run: $name,
            }),+),+]
        }
    };
}
pub(crate) use cases;

/// Runs the end-to-end tests on this machine.
#[derive(Parser)]
struct Arguments {
    /// Which containerd to run against: 1.7, 2.4 or both.
    #[arg(long, default_value = "both")]
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
    /// Runs the tests whose lines come on standard input, and leaves counting to who sends them.
    #[arg(long)]
    ask: bool,
    /// Also those that are left out otherwise, and against each containerd what differs between them.
    #[arg(long)]
    all: bool,
    /// How many containers a test of many makes.
    #[arg(long, default_value_t = 3)]
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
    let chosen = choose(&arguments)?;
    if arguments.list {
        for (version, case) in &chosen {
            println!("{} {}", version.name(), case.name);
        }
        return Ok(());
    }
    let mut runner = Runner::new(arguments)?;
    if runner.arguments.ask {
        for line in std::io::stdin().lines() {
            let line = line?;
            let known = |(version, case): &&(Version, Case)| {
                line == format!("{} {}", version.name(), case.name)
            };
            let (version, case) =
                chosen.iter().find(known).with_context(|| format!("no test {line:?}"))?;
            runner.run(*version, case)?;
        }
        return Ok(());
    }
    let (mut passed, mut failed) = (0, 0);
    for (version, case) in &chosen {
        *(if runner.run(*version, case)? { &mut passed } else { &mut failed }) += 1;
    }
    println!("{passed} passed, {failed} failed");
    if passed == 0 || failed > 0 {
        bail!("not every test passed");
    }
    Ok(())
}

/// Runs one test after another and tells of each.
struct Runner {
    arguments: Arguments,
    contexts: Vec<Context>,
    guard: leaks::Guard,
}

impl Runner {
    /// With every containerd there is up, and nothing of an earlier run left.
    fn new(arguments: Arguments) -> Result<Self> {
        let mut contexts = Vec::new();
        for version in Version::installed() {
            version.start()?;
            let context =
                Context::new(version, &arguments.runtime, &arguments.artifacts, arguments.many);
            context.sweep()?;
            contexts.push(context);
        }
        Ok(Self { arguments, contexts, guard: leaks::Guard::default() })
    }

    /// Runs a test; whether it passed.
    fn run(&mut self, version: Version, case: &Case) -> Result<bool> {
        let context = self.contexts.iter().find(|context| context.containerd == version);
        let context = context.with_context(|| {
            format!("no containerd {} here: install Go, then start again", version.name())
        })?;
        let started = Instant::now();
        let mark = std::fs::metadata(version.log()).map_or(0, |log| log.len() as usize);
        let times = if case.scope.is_only_of_all() { LONGER } else { 1 };
        let limit = LIMIT * times + EACH * self.arguments.many;
        let test = |context: &Context| deadline::within(limit, || (case.run)(context));
        let outcome = self.guard.run(context, test);
        let took = started.elapsed().as_secs_f32();
        let on = version.name();
        if let Err(error) = &outcome {
            report::failure(context, case.name, error, mark);
            println!("failed: {on} {}: {}", case.name, report::short(error));
        }
        // The last line of a test, which says that it has ended.
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{on} {} ... {verdict} ({took:.1} s)", case.name);
        Ok(outcome.is_ok())
    }
}

/// The tests that are asked for, each with the containerd that it runs against.
fn choose(arguments: &Arguments) -> Result<Vec<(Version, Case)>> {
    let topics: &[fn() -> Vec<Case>] = &[
        run::cases,
        // The longest: begun last, they would keep one lab at work while the other has nothing to do.
        boot::cases,
        throughput::cases,
        exec::cases,
        terminal::cases,
        lifecycle::cases,
        logs::cases,
        pause::cases,
        pods::cases,
        pods::crio::cases,
        pods::forward::cases,
        pods::limits::cases,
        pods::network::cases,
        pods::sandbox_api::cases,
        pods::nri::cases,
        pods::vhost_net::cases,
        update::cases,
        memory::cases,
        network::cases,
        pasta::cases,
        limits::cases,
        i386::cases,
        clock::cases,
        deploy::cases,
        destinations::cases,
        disks::cases,
        devmapper::cases,
        erofs::cases,
        leaks::cases,
        hardware::cases,
        wrong_settings::cases,
        bundles::cases,
        oci::cases,
        cgroup::cases,
        oci::execs::cases,
        oci::monitor::cases,
        oci::failures::cases,
        oci::alike::cases,
        as_runc::cases,
        spec::cases,
        volumes::cases,
        odd_files::cases,
        layers::cases,
        stdin::cases,
        confinement::cases,
        conformance::cases,
        crash::cases,
        outage::cases,
        shim::cases,
        residue::cases,
        roots::cases,
        programs::cases,
    ];
    let only = match (arguments.containerd.as_str(), Version::from_name(&arguments.containerd)) {
        ("both", _) => None,
        (_, Some(version)) => Some(version),
        (word, None) => bail!("--containerd wants 1.7, 2.4 or both, not {word}"),
    };
    let wanted = |case: &Case| {
        if case.scope.is_only_of_all() && !arguments.all {
            return false;
        }
        let names = |filter: &String| case.name.contains(filter.as_str());
        arguments.filters.is_empty() || arguments.filters.iter().any(names)
    };
    let mut chosen = Vec::new();
    for case in topics.iter().flat_map(|topic| topic()).filter(wanted) {
        let versions = only.map_or_else(|| case.versions(arguments.all), |version| vec![version]);
        let may = |version: &Version| !case.scope.is_of_newest() || *version == Version::V2_4;
        chosen.extend(versions.into_iter().filter(may).map(|version| (version, case.clone())));
    }
    Ok(chosen)
}
