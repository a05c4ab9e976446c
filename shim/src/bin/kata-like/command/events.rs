//! `events`: what a container uses, now or at intervals, and that it ran out of memory.

use crate::Globals;
use crate::command::{json, out};
use crate::monitor::call::{self, Answer, Call, Status};
use crate::monitor::stats::Stats;
use crate::record::Home;
use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How often it is looked whether the container ran out of memory.
const LOOK: Duration = Duration::from_millis(500);

/// Most kills that are told after one look: how many there were is the guest's word.
const MOST_KILLS_TOLD: u64 = 16;

/// How long after a look that failed the container may take to have ended, which is why it failed.
const ENDING: Duration = Duration::from_secs(2);

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
        // The container has ended, and with it what there is to tell.
        let Some((now, kills_now)) = unless_ended(used(&home, due), || has_ended(&home))? else {
            return Ok(0);
        };
        for _ in 0..kills_to_tell(kills, kills_now) {
            tell(&Event { kind: "oom", id: home.id(), data: None })?;
        }
        (stats, kills) = (now, kills_now);
    }
}

/// How many kills are told of those that came between two looks.
fn kills_to_tell(before: u64, now: u64) -> u64 {
    now.saturating_sub(before).min(MOST_KILLS_TOLD)
}

/// What a look showed; `None` if it failed because the container has ended.
fn unless_ended<T>(look: Result<T>, has_ended: impl FnOnce() -> bool) -> Result<Option<T>> {
    match look {
        Err(error) if call::is_not_running(&error) || has_ended() => Ok(None),
        look => look.map(Some),
    }
}

/// Whether the container has ended, or does so within [`ENDING`].
fn has_ended(home: &Home) -> bool {
    let end = Instant::now() + ENDING;
    loop {
        let ended = match home.load() {
            Ok(record) => matches!(call::status(home, &record), Ok(Status::Stopped)),
            Err(_) => !home.path().exists(),
        };
        if ended || Instant::now() >= end {
            return ended;
        }
        std::thread::sleep(LOOK);
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
    out::print(&format!("{}\n", json::line(event)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::call::CallError;

    #[test]
    fn a_guest_that_counts_kills_without_end_is_not_followed_without_end() {
        assert_eq!(kills_to_tell(0, u64::MAX), MOST_KILLS_TOLD);
        assert_eq!((kills_to_tell(2, 5), kills_to_tell(5, 5), kills_to_tell(5, 2)), (3, 0, 0));
    }

    #[test]
    fn only_the_containers_end_ends_it_well() {
        let failed = |error: CallError, ended| unless_ended::<()>(Err(error.into()), || ended);
        assert!(unless_ended(Ok(7), || unreachable!()).unwrap() == Some(7));
        assert!(failed(CallError::NotRunning, false).unwrap().is_none());
        for refused in [CallError::Silent(1), CallError::Refused("deadline".into())] {
            assert!(failed(refused, false).is_err());
        }
        assert!(failed(CallError::Refused("the agent has gone".into()), true).unwrap().is_none());
    }

    #[test]
    fn a_container_that_is_not_there_has_ended_and_one_that_is_made_has_not() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::new(root.path(), "c1").unwrap();
        assert!(has_ended(&home));
        let _reserved = home.clone().reserve().unwrap();
        assert!(!has_ended(&home));
    }
}
