//! Memory of an idle sandbox: the proportional set size of each of its processes, guest memory apart.

use crate::timing::{Container, Runtime};
use anyhow::{Context, Result};
use lab::bench::Row;
use std::fs;

/// The mapping that is the guest's memory, by the name of its memfd.
const GUEST_MEMORY: &str = "memfd:guest-memory";

/// What a process is, by its program.
const PROGRAMS: [(&str, &str); 4] = [
    ("containerd-shim", "shim"),
    ("kata-like-vmm", "VMM"),
    ("kata-like-fs", "file server"),
    ("sleep", "container's process"),
];

/// Rows for every process, for the guest's memory, and for all together.
pub fn rows(container: &Container) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let (mut guest, mut total) = (0.0, 0.0);
    for (what, pid) in processes(&container.id)? {
        let (own, of_guest) = of_process(pid)?;
        rows.extend(row(container, &format!("memory, idle: {what}"), own));
        guest += of_guest;
        total += own + of_guest;
    }
    if container.runtime == Runtime::KataLike {
        rows.extend(row(container, "memory, idle: guest", guest));
    }
    rows.extend(row(container, "memory, idle: whole sandbox", total));
    Ok(rows)
}

/// All that the sandbox of this id takes, MiB.
pub fn whole(id: &str) -> Result<f64> {
    let each = processes(id)?.into_iter().map(|(_, pid)| of_process(pid));
    each.map(|mib| mib.map(|(own, guest)| own + guest)).sum()
}

fn of_process(pid: u32) -> Result<(f64, f64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("smaps")?;
    Ok(proportional_mib(&smaps))
}

fn row(container: &Container, name: &str, mib: f64) -> Option<Row> {
    Row::of(name, "MiB", container.runtime.name(), &[mib])
}

/// The sandbox's processes: its shim, found by the id on its command line, and all below it.
fn processes(id: &str) -> Result<Vec<(String, u32)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent =
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        all.push((pid, parent.unwrap_or(0u32), command));
    }
    let shim = all
        .iter()
        .find(|(_, _, c)| c.contains("containerd-shim") && c.contains(id))
        .with_context(|| format!("no shim of {id}"))?;
    let mut family = vec![shim.0];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|(_, p, _)| *p == parent).map(|(pid, _, _)| *pid));
        next += 1;
    }
    let named = |pid: u32| {
        let command = all.iter().find(|(p, _, _)| *p == pid).map_or("", |(_, _, c)| c);
        let program = command.split(' ').next().unwrap_or_default();
        let known = PROGRAMS.iter().find(|(word, _)| program.contains(word));
        (known.map_or(program, |(_, what)| what).to_owned(), pid)
    };
    Ok(family.into_iter().map(named).collect())
}

/// The sum of `Pss` in a text of `/proc/PID/smaps`, MiB: without and of the guest's memory.
fn proportional_mib(smaps: &str) -> (f64, f64) {
    let (mut own, mut guest, mut in_guest) = (0.0, 0.0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") => {
                let kib: f64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
                *(if in_guest { &mut guest } else { &mut own }) += kib / 1024.0;
            }
            Some(word) if !word.ends_with(':') => in_guest = line.contains(GUEST_MEMORY),
            _ => {}
        }
    }
    (own, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_processes_own() {
        let smaps = "00400000-00500000 r-xp 0 fe:00 1 /usr/libexec/kata-like/kata-like-vmm\n\
                     Size: 1024 kB\nPss: 512 kB\nPss_Dirty: 99 kB\n\
                     7f0000000000-7f0008000000 rw-s 0 00:01 2 /memfd:guest-memory (deleted)\n\
                     Pss: 2048 kB\n7ffe00000000-7ffe00021000 rw-p 0 00:00 0 [stack]\nPss: 512 kB\n";
        assert_eq!(proportional_mib(smaps), (1.0, 2.0));
    }
}
