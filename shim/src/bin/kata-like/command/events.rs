//! `events`: what a container uses, now or at intervals, and that it ran out of memory.

use crate::Globals;
use crate::command::json;
use crate::monitor::call::{self, Answer, Call};
use crate::monitor::stats::Stats;
use crate::record::Home;
use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// How often it is looked whether the container ran out of memory.
const LOOK: Duration = Duration::from_millis(500);

/// Show what a container uses, and when it runs out of memory
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show it once and end
    #[arg(long)]
    stats: bool,
    /// How often to show it, as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Name of the container
    id: String,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    if arguments.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let home = Home::new(globals.root(), &arguments.id)?;
    let (mut stats, mut kills) = match used(&home, true) {
        Err(error) if call::is_not_running(&error) => {
            bail!("container with id {} is not running", home.id())
        }
        used => used?,
    };
    let (mut next, mut due) = (Instant::now(), true);
    loop {
        if due {
            tell(&Event { kind: "stats", id: home.id(), data: Some(&stats) })?;
            next += arguments.interval;
        }
        if arguments.stats {
            return Ok(0);
        }
        std::thread::sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        due = Instant::now() >= next;
        // No answer: the container has ended, and with it what there is to tell.
        let Ok((now, kills_now)) = used(&home, due) else { return Ok(0) };
        for _ in kills..kills_now {
            tell(&Event { kind: "oom", id: home.id(), data: None })?;
        }
        (stats, kills) = (now, kills_now);
    }
}

/// What the container uses, with its sandbox if that is to be shown, and how many of its processes were killed for
/// lack of memory.
fn used(home: &Home, sandbox: bool) -> Result<(Box<Stats>, u64)> {
    match call::ask(home, &Call::Stats { sandbox }, &[])? {
        Answer::Stats { stats, oom_kills } => Ok((stats, oom_kills)),
        _ => bail!("the container's monitor answered something else"),
    }
}

/// As runc prints it.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

fn tell(event: &Event<'_>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json::line(event)?)?;
    Ok(out.flush()?)
}
