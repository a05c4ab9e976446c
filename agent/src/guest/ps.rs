//! What /proc tells of a process.

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;
use protobuf::Message as _;
use protocol::agent::ProcessInfo;
use protocol::ports::MAX_ANSWER;
use std::fs::File;
use std::io::Read as _;

/// Most bytes of a command line that are told.
const MAX_COMMAND: u64 = 4096;

/// Most processes that are looked at for one answer.
pub const MOST_AT_ONCE: usize = 512;

/// How many of the first go into one answer: one does in any case, as three times [`MAX_COMMAND`] does, which a command
/// that is no UTF-8 becomes.
pub fn that_fit(processes: &[ProcessInfo]) -> usize {
    let sizes = processes.iter().scan(0, |sum, process| {
        *sum += process.compute_size() + ITEM_HEAD;
        Some(*sum)
    });
    sizes.take_while(|sum| *sum <= MAX_ANSWER / 2).count().max(1)
}

/// What stands before an item of a list in a message, at most, bytes.
const ITEM_HEAD: u64 = 4;

/// Describes a process, in place of its command its name; of one that has ended meanwhile only the pid is known.
/// Nothing of its memory is read, which can take as long as the process wants.
pub fn describe(pid: i32) -> ProcessInfo {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()
    };
    let number = |name: &str| field(name).and_then(|text| text.parse().ok()).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let told = Stat::parse(&stat).map(|stat| stat.told(&Now::read())).unwrap_or_default();
    ProcessInfo {
        pid: pid as u32,
        parent: number("PPid:"),
        uid: number("Uid:"),
        command: field("Name:").map(|name| format!("[{name}]")).unwrap_or_default(),
        name: field("Name:").unwrap_or_default().to_owned(),
        ..told
    }
}

/// The words of a process's command; none of one that has ended. It may not return: they lie in its memory.
pub fn command(pid: i32) -> String {
    let mut arguments = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        // A process that ends just now has none.
        let _ = file.take(MAX_COMMAND).read_to_end(&mut arguments);
    }
    String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ")
}

/// What /proc/PID/stat (proc(5)) tells by numbers: that of the first is 3.
struct Stat<'a> {
    pid: i64,
    state: &'a str,
    numbers: Vec<i64>,
}

/// What a process's figures are of.
struct Now {
    /// Since the epoch, and since the start of the guest, milliseconds.
    epoch_ms: u64,
    boot_ms: u64,
    /// Of the guest, bytes.
    memory: u64,
}

impl Now {
    fn read() -> Self {
        let clock = |id| {
            nix::time::clock_gettime(id).map_or(0, |time| {
                time.tv_sec().cast_unsigned() * 1000 + time.tv_nsec().cast_unsigned() / 1_000_000
            })
        };
        let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
        let (epoch_ms, boot_ms) = (clock(ClockId::CLOCK_REALTIME), clock(ClockId::CLOCK_BOOTTIME));
        Self { epoch_ms, boot_ms, memory }
    }
}

/// Milliseconds of a clock tick, and bytes of a page: what the guest's architecture has.
const TICK_MS: u64 = 10;
const PAGE: u64 = 4096;

/// First and last major number of terminals of devpts.
const PTS: std::ops::RangeInclusive<i64> = 136..=143;

impl<'a> Stat<'a> {
    /// The name before the fields may contain anything.
    fn parse(text: &'a str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        let mut words = text.rsplit_once(") ")?.1.split_ascii_whitespace();
        let state = words.next()?;
        let numbers: Vec<i64> = words.map(|word| word.parse().unwrap_or(i64::MAX)).collect();
        (numbers.len() >= 21).then_some(Self { pid, state, numbers })
    }

    fn field(&self, number: usize) -> i64 {
        self.numbers[number - 4]
    }

    fn told(&self, now: &Now) -> ProcessInfo {
        let positive = |number| u64::try_from(self.field(number)).unwrap_or_default();
        let began = positive(22).saturating_mul(TICK_MS);
        let elapsed_ms = now.boot_ms.saturating_sub(began);
        let resident_bytes = positive(24).saturating_mul(PAGE);
        let share = resident_bytes.saturating_mul(1000).checked_div(now.memory).unwrap_or_default();
        ProcessInfo {
            state: self.state(),
            terminal: self.terminal(),
            started_s: now.epoch_ms.saturating_sub(elapsed_ms) / 1000,
            elapsed_ms,
            cpu_ms: positive(14).saturating_add(positive(15)).saturating_mul(TICK_MS),
            virtual_bytes: positive(23),
            resident_bytes,
            memory_permille: share as u32,
            nice: self.field(19) as i32,
            threads: positive(20) as u32,
            ..ProcessInfo::default()
        }
    }

    /// The letters that ps adds, in its order.
    fn state(&self) -> String {
        let nice = self.field(19);
        let leads = self.field(6) == self.pid;
        let foreground = self.field(8) > 0 && self.field(8) == self.field(5);
        let letters = [
            (nice < 0, '<'),
            (nice > 0, 'N'),
            (leads, 's'),
            (self.field(20) > 1, 'l'),
            (foreground, '+'),
        ];
        self.state
            .chars()
            .chain(letters.into_iter().filter_map(|(has, c)| has.then_some(c)))
            .collect()
    }

    fn terminal(&self) -> String {
        let number = self.field(7);
        let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
        if !PTS.contains(&major) {
            return String::new();
        }
        format!("pts/{}", (major - PTS.start()) * 256 + minor)
    }
}

/// Kills a process and its descendants; tells what each was doing.
pub fn end_tree(root: i32) -> String {
    let mut tree = vec![root];
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: Vec<(i32, i32)> = pids.map(|pid| (pid, describe(pid).parent as i32)).collect();
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    let doing = |pid: &i32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (wchan, call) =
            (read("wchan").unwrap_or_default(), read("syscall").unwrap_or_default());
        let text =
            format!("{pid} {} in {wchan:?}, system call {}", describe(*pid).command, call.trim());
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        text
    };
    tree.iter().map(doing).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_process_is_described_and_one_that_is_gone_is_no_error() {
        let mut child = std::process::Command::new("sleep").args(["100", "200"]).spawn().unwrap();
        let pid = child.id() as i32;
        let sleeps = || command(pid) == "sleep 100 200";
        while !sleeps() {
            std::thread::yield_now();
        }
        assert_eq!(describe(pid).parent, std::process::id());
        assert_eq!(describe(pid).command, "[sleep]");
        child.kill().unwrap();
        // Ended and not waited for: it has a name and no arguments any more.
        while !command(pid).is_empty() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(describe(pid).command, "");
    }

    #[test]
    fn a_list_is_cut_where_an_answer_is_full() {
        let long = ProcessInfo {
            command: String::from_utf8_lossy(&[0xff; MAX_COMMAND as usize]).into_owned(),
            ..ProcessInfo::default()
        };
        let fit = that_fit(&vec![long.clone(); MOST_AT_ONCE]);
        assert_eq!((fit, that_fit(std::slice::from_ref(&long)), that_fit(&[])), (5, 1, 1));
        let mut list = protocol::agent::ListProcessesResponse::new();
        list.processes = vec![long; fit];
        assert!(list.compute_size() <= MAX_ANSWER / 2);
        assert_eq!(that_fit(&vec![describe(1); 500]), 500);
    }

    #[test]
    fn the_figures_of_a_process_are_those_of_its_stat() {
        // pid (name) state ppid pgrp session tty tpgid, up to the resident pages.
        let text = "7 (a) b) S 1 7 7 34817 7 0 0 0 0 0 150 50 0 0 15 -5 2 0 1000 8192 3 0";
        let now = Now { epoch_ms: 1_000_000_000, boot_ms: 25_000, memory: 4 * 12288 };
        let told = Stat::parse(text).unwrap().told(&now);
        assert_eq!((&*told.state, &*told.terminal), ("S<sl+", "pts/1"));
        assert_eq!((told.cpu_ms, told.elapsed_ms, told.started_s), (2000, 15_000, 999_985));
        let memory = (told.virtual_bytes, told.resident_bytes, told.memory_permille);
        assert_eq!((memory, told.nice, told.threads), ((8192, 12288, 250), -5, 2));
        for broken in ["", "7 (a) S 1", "x (a) S"] {
            assert!(Stat::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_tree_is_ended_whole_and_told() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 300 & sleep 300; true"])
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = shell.id() as i32;
        let children = || -> Vec<i32> {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
        };
        let sleep = || children().iter().filter(|&&child| command(child) == "sleep 300").count();
        while sleep() < 2 {
            std::thread::yield_now();
        }
        let told = end_tree(pid);
        assert_eq!(told.matches("[sleep] in").count(), 2, "{told}");
        assert_eq!(shell.wait().unwrap().code(), None);
    }
}
