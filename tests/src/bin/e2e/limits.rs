//! A container at the end of what it is given: the sandbox goes on and answers.

use crate::bundle::{Bundle, config};
use crate::command::{self, Running};
use crate::context::Context;
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Duration;

crate::cases!(
    crate::Scope::AllOnce;
    a_container_that_makes_all_the_processes_it_can_leaves_the_sandbox_answering,
    one_per_cent_of_a_processor_is_enough_to_be_made,
);

/// How long an answer may take in a guest that has no memory left.
const PATIENCE: Duration = Duration::from_secs(150);

/// As many as there can be, which the kernel is to end before anything else when memory runs out.
const BOMB: &str = "echo 1000 > /proc/self/oom_score_adj; \
    (while :; do sleep 1000000 & done) < /dev/null > /dev/null 2>&1 & sleep 40";

fn a_container_that_makes_all_the_processes_it_can_leaves_the_sandbox_answering(
    context: &Context,
) -> Result<()> {
    let container = context.sleeper()?;
    container.exec(&["sh", "-c", BOMB])?;
    for _ in 0..3 {
        // Whether there is room for one more or not: there is an answer, if late.
        let mut exec = container.exec_command(&[], &["true"]);
        Running::start(&mut exec, Vec::new())?.finish(PATIENCE)?;
        container.task(&["metrics"], &[])?.expect_code(0)?;
    }
    let status = container.status()?;
    if status.as_deref() != Some("RUNNING") {
        bail!("the container is {status:?}");
    }
    container.remove()
}

fn one_per_cent_of_a_processor_is_enough_to_be_made(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let mut spec = config(&["cat", "/sys/fs/cgroup/cpu.max"]);
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]);
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    spec["linux"]["namespaces"] = json!(namespaces.map(|kind| json!({"type": kind})));
    spec["linux"]["resources"] = json!({"cpu": {"quota": 1000, "period": 100_000}});
    bundle.write_config(&spec)?;
    // A hundredth of a processor that is emulated, and shared with another lab.
    let seen = bundle.run_within(3 * command::DEADLINE)?.expect_code(0)?.text();
    if seen.trim() != "1000 100000" {
        bail!("the limit is {seen:?}");
    }
    Ok(())
}
