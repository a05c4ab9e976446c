//! `ctr task exec`: more processes in a running container.

use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};

crate::cases!(
    crate::Scope::OneOrEach;
    exit_codes_come_through,
    an_exec_is_listed_and_killed;
    crate::Scope::Once;
    a_heredoc_is_counted_right;
    crate::Scope::AllOnce;
    runs_in_the_containers_namespaces,
    the_last_words_arrive_whole,
    twenty_at_a_time,
);

fn runs_in_the_containers_namespaces(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let same = "for n in mnt pid uts ipc net; do \
        [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo differs: $n; done; \
        tr '\\0' ' ' < /proc/1/cmdline";
    let seen = container.exec(&["sh", "-c", same])?.expect_code(0)?.text();
    if seen.trim() != "sleep 1000000" {
        bail!("seen from an exec: {seen:?}");
    }
    container.remove()
}

fn exit_codes_come_through(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    for code in [0, 1, 42, 137] {
        container.exec(&["sh", "-c", &format!("exit {code}")])?.expect_code(code)?;
    }
    container.exec(&["sh", "-c", "kill -TERM $$"])?.expect_code(128 + 15)?;
    container.remove()
}

fn a_heredoc_is_counted_right(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let lines = "line 12345\n".repeat(20_000);
    let expected = ["20000".to_owned(), "40000".to_owned(), lines.len().to_string()];
    let counts = container.exec_with_stdin(lines, &["wc"])?.expect_code(0)?.text();
    if counts.split_whitespace().collect::<Vec<_>>() != expected {
        bail!("wc counted {counts:?}, not {expected:?}");
    }
    container.remove()
}

/// What a process writes in its last moment, each time; eight times for each of `--many`.
fn the_last_words_arrive_whole(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let script = "i=0; while [ $i -lt 200 ]; do echo 0123456789; i=$((i+1)); done; echo last >&2";
    let whole = "0123456789\n".repeat(200);
    for round in 0..8 * context.many {
        let said = container.exec(&["sh", "-c", script])?.expect_code(0)?;
        if said.stdout != whole.as_bytes() || said.stderr != "last\n" {
            let (out, err) = (said.stdout.len(), said.stderr);
            bail!("round {round}: {out} of {} bytes, stderr {err:?}", whole.len());
        }
    }
    container.remove()
}

fn an_exec_is_listed_and_killed(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let mut ctr = context.ctr_command(&["task", "exec", "--exec-id", "napper", &container.id]);
    let napping = command::Running::start(ctr.args(["sleep", "5000"]), Vec::new())?;
    command::eventually("the exec is listed", command::DEADLINE, || {
        Ok(container.task(&["ps"], &[])?.expect_code(0)?.text().contains("napper"))
    })?;
    container.task(&["kill", "-s", "KILL", "--exec-id", "napper"], &[])?.expect_code(0)?;
    napping.finish(command::DEADLINE)?.expect_code(137)?;
    container.remove()
}

fn twenty_at_a_time(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let started: Vec<_> = (0..20)
        .map(|n| {
            let mut ctr = container.exec_command(&[], &["sh", "-c", &format!("cat; echo {n}")]);
            command::Running::start(&mut ctr, format!("in {n} ").into_bytes())
        })
        .collect::<Result<_>>()?;
    for (n, running) in started.into_iter().enumerate() {
        let said = running.finish(command::DEADLINE)?.expect_code(0)?.text();
        if said != format!("in {n} {n}") {
            bail!("exec {n} said {said:?}");
        }
    }
    container.remove()
}
