//! A part of Kubernetes' suite for container runtimes that takes a few minutes; `make conformance` runs all of it.

use crate::command::Running;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use lab::conformance::RUN;
use lab::conformance::report::{self, Outcome};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

crate::cases!(
    crate::Scope::AllOnce;
    passes_cases_of_every_kind,
);

/// By how their names end. They pass on runc.
const CASES: [&str; 15] = [
    "runtime should support execSync with timeout",
    "runtime should support attach",
    "runtime should support reopening container log",
    "runtime should support listing stats for started containers",
    "runtime should support port mapping with host port and container port",
    "when running multiple containers in a pod should support network",
    "should terminate with exitCode 137 and reason OOMKilled",
    "should support unsafe sysctls",
    "mount with 'rslave' should support propagation from host to container",
    "runtime should support PodPID",
    "runtime should support ContainerPID",
    "runtime should support MaskedPaths",
    "runtime should support dropping capability",
    "should not allow privilege escalation when true",
    "runtime should support an seccomp profile that blocks setting hostname with SYS_ADMIN",
];

/// Less than what a test may take.
const LIMIT: Duration = Duration::from_secs(570);

fn passes_cases_of_every_kind(context: &Context) -> Result<()> {
    let file = PathBuf::from("/tmp").join(format!("{}.json", context.fresh_id()));
    let mut suite = Command::new(RUN);
    suite.arg(context.containerd.suffix()).arg("kata-like").arg(&file);
    let focus = format!("--ginkgo.focus=({})( \\[Conformance\\])?$", CASES.join("|"));
    suite.args(["--ginkgo.seed=1", &focus]);
    let output = Running::start(&mut suite, Vec::new())?.finish(LIMIT)?;
    let report = report::read(&file).with_context(|| output.text())?;
    fs::remove_file(file)?;
    for words in CASES {
        let cases: Vec<_> = report.iter().filter(|(name, _)| name.ends_with(words)).collect();
        ensure!(!cases.is_empty(), "the suite has no case {words:?}");
        for (name, outcome) in cases {
            ensure!(*outcome == Outcome::Passed, "{name}: {outcome:?}");
        }
    }
    Ok(())
}
