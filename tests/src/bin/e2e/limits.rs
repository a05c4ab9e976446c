//! A container at the end of what it is given: the sandbox goes on and answers.

use crate::bundle::{Bundle, config};
use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};
use serde_json::json;

crate::cases!(
    crate::Scope::Once;
    a_container_that_makes_all_the_processes_it_can_leaves_the_sandbox_answering,
    one_per_cent_of_a_processor_is_enough_to_be_made,
);

/// As many as there can be, which the kernel is to end before anything else when memory runs out.
const BOMB: &str = "echo 1000 > /proc/self/oom_score_adj; \
    (while :; do sleep 1000000 & done) < /dev/null > /dev/null 2>&1 & sleep 40";

fn a_container_that_makes_all_the_processes_it_can_leaves_the_sandbox_answering(
    context: &Context,
) -> Result<()> {
    let container = context.sleeper()?;
    container.exec(&["sh", "-c", BOMB])?;
    for _ in 0..3 {
        // Whether there is room for one more or not: there is an answer.
        container.exec(&["true"])?;
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
    spec["mounts"][1] =
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"});
    spec["linux"]["namespaces"][4] = json!({"type": "cgroup"});
    spec["linux"]["resources"] = json!({"cpu": {"quota": 1000, "period": 100_000}});
    bundle.write_config(&spec)?;
    let seen = bundle.run_within(command::DEADLINE)?.expect_code(0)?.text();
    if seen.trim() != "1000 100000" {
        bail!("the limit is {seen:?}");
    }
    Ok(())
}
