//! What a container uses, from the files of its cgroup.

use crate::guest::cgroup::Cgroup;
use protocol::agent::{ContainerStatsResponse, IoUse};
use std::collections::HashMap;
use std::io;

/// Files of one number each.
const SINGLE: [&str; 8] = [
    "memory.current",
    "memory.peak",
    "memory.max",
    "memory.swap.current",
    "memory.swap.peak",
    "memory.swap.max",
    "pids.current",
    "pids.max",
];

/// What the container with that cgroup uses.
///
/// # Errors
/// When a file cannot be read; one that this kernel doesn't have counts nothing.
pub fn of(cgroup: &Cgroup) -> io::Result<ContainerStatsResponse> {
    let mut single = HashMap::new();
    for file in SINGLE {
        if let Ok(value) = cgroup.read(file)?.trim().parse() {
            single.insert(file.to_owned(), value);
        }
    }
    Ok(ContainerStatsResponse {
        cpu: table(&cgroup.read("cpu.stat")?),
        memory: table(&cgroup.read("memory.stat")?),
        memory_events: table(&cgroup.read("memory.events")?),
        single,
        io: cgroup.read("io.stat")?.lines().filter_map(device).collect(),
        ..ContainerStatsResponse::default()
    })
}

/// Lines of a name and a value.
fn table(text: &str) -> HashMap<String, u64> {
    let entry = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

/// A line like `8:0 rbytes=1 wbytes=2`.
fn device(line: &str) -> Option<IoUse> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let value = |word: &str| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Some(IoUse {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        values: words.filter_map(value).collect(),
        ..IoUse::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_what_is_no_number_is_left_out() {
        assert_eq!(
            table("usage_usec 5\nnr_periods x\nlone\n"),
            [("usage_usec".to_owned(), 5)].into()
        );
        let device = device("8:16 rbytes=1 wbytes=2 odd").unwrap();
        assert_eq!((device.major, device.minor, device.values["wbytes"]), (8, 16, 2));
        assert!(super::device("8 rbytes=1").is_none());
    }
}
