//! What a container uses, from the files of its cgroup.

use crate::guest::cgroup::Cgroup;
use protocol::agent::{ContainerStatsResponse, HugePages, IoUse, Pressure};
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
        pressure: pressure(cgroup),
        huge_pages: huge_pages(cgroup)?,
        ..ContainerStatsResponse::default()
    })
}

/// A cgroup whose pressure is not counted has the files, and they can't be read.
fn pressure(cgroup: &Cgroup) -> HashMap<String, Pressure> {
    let mut all = HashMap::new();
    for of in ["cpu", "memory", "io"] {
        let text = cgroup.read(&format!("{of}.pressure")).unwrap_or_default();
        for (kind, pressure) in text.lines().filter_map(stall) {
            all.insert(format!("{of} {kind}"), pressure);
        }
    }
    all
}

/// A line like `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn stall(line: &str) -> Option<(&str, Pressure)> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let values: HashMap<_, _> = words.filter_map(|word| word.split_once('=')).collect();
    let average = |name| values.get(name)?.parse().ok();
    let pressure = Pressure {
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
        total: values.get("total")?.parse().ok()?,
        ..Pressure::default()
    };
    Some((kind, pressure))
}

/// Of each size that this kernel has.
fn huge_pages(cgroup: &Cgroup) -> io::Result<HashMap<String, HugePages>> {
    let mut all = HashMap::new();
    for file in cgroup.files()? {
        let Some(size) =
            file.strip_prefix("hugetlb.").and_then(|f| f.strip_suffix(".rsvd.current"))
        else {
            continue;
        };
        let events = table(&cgroup.read(&format!("hugetlb.{size}.events"))?);
        let pages = HugePages {
            usage: cgroup.read(&file)?.trim().parse().unwrap_or_default(),
            failures: events.get("max").copied().unwrap_or_default(),
            ..HugePages::default()
        };
        all.insert(size.to_owned(), pages);
    }
    Ok(all)
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
        let (kind, pressure) = stall("some avg10=1.50 avg60=0.25 avg300=0.00 total=12").unwrap();
        assert_eq!((kind, pressure.avg10, pressure.avg60, pressure.total), ("some", 1.5, 0.25, 12));
        assert!(stall("full avg10=x").is_none());
    }
}
