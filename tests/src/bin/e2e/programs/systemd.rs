//! A container whose first process is systemd.

use super::disk::Root;
use super::{PATIENCE, RUNTIMES};
use crate::bundle::{Background, Bundle};
use crate::command::{self, Output, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

/// Services of the image that have nothing to do with it, and such as write thousands of small pieces.
const MASKED: [&str; 4] = [
    "postgresql.service",
    "redis-server.service",
    "systemd-journal-catalog-update.service",
    "ldconfig.service",
];

/// What is asked of it, and words of the answer.
const QUESTIONS: [(&str, &str); 5] = [
    (
        "systemctl is-system-running; systemctl list-units --failed --no-legend --no-pager",
        "running",
    ),
    ("cat /proc/1/cgroup /proc/self/cgroup", "0::/init.scope\n0::/init.scope"),
    (
        "systemd-run --wait --pipe -q --unit=limited -p MemoryMax=32M -p TasksMax=9 sh -c \
         'cat /proc/self/cgroup; cd /sys/fs/cgroup/system.slice/limited.service; cat memory.max pids.max; id -un'",
        "0::/system.slice/limited.service\n33554432\n9\nroot",
    ),
    (
        "systemd-run --wait -q --unit=big -p MemoryMax=16M -p MemorySwapMax=0 tail /dev/zero; echo $?; \
         systemctl show big -p Result",
        "Result=oom-kill",
    ),
    (
        "systemd-run -q --unit=long sleep 1000; systemctl is-active long; systemctl stop long; \
         systemctl is-active long",
        "active\ninactive",
    ),
];

/// glibc's SIGRTMIN+3, by which a container is told to halt.
const HALT: &str = "37";

/// As `systemd.io/CONTAINER_INTERFACE` asks for it.
fn spec(root: &Root) -> Value {
    let mut spec = super::spec(root, &["/sbin/init"]);
    super::privileged(&mut spec);
    if let Some(env) = spec["process"]["env"].as_array_mut() {
        env.push(json!("container=docker"));
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]});
        mounts.extend(["/tmp", "/run/lock"].map(tmpfs));
    }
    spec
}

/// Boots it, has it run units with limits, and halts it.
pub fn systemd_is_the_first_process(context: &Context) -> Result<()> {
    let mut expected: Option<Vec<_>> = None;
    for runtime in RUNTIMES {
        let said = life(context, runtime).context(runtime)?;
        match &expected {
            None => expected = Some(said),
            Some(expected) => ensure!(*expected == said, "runc: {expected:?}\n{runtime}: {said:?}"),
        }
    }
    Ok(())
}

/// Its answers.
fn life(context: &Context, runtime: &'static str) -> Result<Vec<String>> {
    let root = Root::mount(context)?;
    for service in MASKED {
        symlink("/dev/null", root.path().join("etc/systemd/system").join(service))?;
    }
    let patient = root.path().join("etc/systemd/system.conf.d");
    fs::create_dir_all(&patient)?;
    fs::write(patient.join("patient.conf"), "[Manager]\nDefaultTimeoutStartSec=900\n")?;
    let bundle = Bundle::new(context, &[])?;
    bundle.write_config(&spec(&root))?;
    let started = Instant::now();
    let container = Background::run(context, runtime, &bundle)?;
    // An exec before systemd has handed its controllers down would stay in the way: it is in the cgroup above.
    command::eventually("systemd has started its bus", PATIENCE, || {
        Ok(patiently(&mut container.command("ps", &[], &[]))?.text().contains("dbus-daemon"))
    })?;
    let state = ask(&container, "systemctl is-system-running --wait")?;
    println!("{runtime}: {:.1} s", started.elapsed().as_secs_f32());
    let mut answers = Vec::new();
    for (question, words) in QUESTIONS {
        let answer = ask(&container, question)?;
        if !answer.text().contains(words) {
            bail!("{state:?}; to {question}: {answer:?}");
        }
        answers.push(answer.text());
    }
    command::output(&mut container.command("kill", &[], &[HALT]))?.expect_code(0)?;
    command::eventually("systemd has halted", PATIENCE, || {
        let state = container.say("state", &[])?.expect_code(0)?.text();
        Ok(serde_json::from_str::<Value>(&state)?["status"] == "stopped")
    })?;
    println!("{runtime}: {:.1} s to its end", started.elapsed().as_secs_f32());
    Ok(answers)
}

fn ask(container: &Background<'_>, question: &str) -> Result<Output> {
    patiently(&mut container.command("exec", &[], &["sh", "-c", question]))
}

fn patiently(command: &mut Command) -> Result<Output> {
    Running::start(command, Vec::new())?.finish(PATIENCE)
}
