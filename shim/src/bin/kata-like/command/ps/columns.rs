//! What there is to tell of a process, as ps(1) writes it.

use sandbox::Process;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// One column.
pub(super) struct Column {
    pub(super) kind: Kind,
    pub(super) title: String,
}

/// What is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Uid,
    Pid,
    Parent,
    /// Whole per cents.
    Cpu,
    CpuPercent,
    MemoryPercent,
    /// KiB.
    Virtual,
    Resident,
    Terminal,
    State,
    /// Its first letter.
    ShortState,
    Started,
    /// `hh:mm:ss`
    Time,
    /// `m:ss`
    ShortTime,
    Elapsed,
    Nice,
    Threads,
    Name,
    Command,
}

/// Kinds with their titles.
type Style = &'static [(Kind, &'static str)];

impl Kind {
    /// `-f`
    pub(super) const FULL: Style = &[
        (Self::User, "UID"),
        (Self::Pid, "PID"),
        (Self::Parent, "PPID"),
        (Self::Cpu, "C"),
        (Self::Started, "STIME"),
        (Self::Terminal, "TTY"),
        (Self::Time, "TIME"),
        (Self::Command, "CMD"),
    ];

    /// `u`
    pub(super) const USER: Style = &[
        (Self::User, "USER"),
        (Self::Pid, "PID"),
        (Self::CpuPercent, "%CPU"),
        (Self::MemoryPercent, "%MEM"),
        (Self::Virtual, "VSZ"),
        (Self::Resident, "RSS"),
        (Self::Terminal, "TTY"),
        (Self::State, "STAT"),
        (Self::Started, "START"),
        (Self::ShortTime, "TIME"),
        (Self::Command, "COMMAND"),
    ];

    /// `-l`, of which the guest tells no flags, priorities and wait channels.
    pub(super) const LONG: Style = &[
        (Self::ShortState, "S"),
        (Self::Uid, "UID"),
        (Self::Pid, "PID"),
        (Self::Parent, "PPID"),
        (Self::Cpu, "C"),
        (Self::Nice, "NI"),
        (Self::Terminal, "TTY"),
        (Self::Time, "TIME"),
        (Self::Name, "CMD"),
    ];

    /// BSD's.
    pub(super) const SHORT: Style = &[
        (Self::Pid, "PID"),
        (Self::Terminal, "TTY"),
        (Self::State, "STAT"),
        (Self::ShortTime, "TIME"),
        (Self::Command, "COMMAND"),
    ];

    /// Without any of these.
    pub(super) const SIMPLE: Style =
        &[(Self::Pid, "PID"), (Self::Terminal, "TTY"), (Self::Time, "TIME"), (Self::Name, "CMD")];

    /// A column by its name in a list, with its title.
    pub(super) fn named(name: &str) -> Option<(Self, &'static str)> {
        Some(match name {
            "user" | "euser" | "uname" => (Self::User, "USER"),
            "uid" | "euid" => (Self::Uid, "UID"),
            "pid" => (Self::Pid, "PID"),
            "ppid" => (Self::Parent, "PPID"),
            "c" => (Self::Cpu, "C"),
            "%cpu" | "pcpu" => (Self::CpuPercent, "%CPU"),
            "%mem" | "pmem" => (Self::MemoryPercent, "%MEM"),
            "vsz" | "vsize" => (Self::Virtual, "VSZ"),
            "rss" | "rssize" | "rsz" => (Self::Resident, "RSS"),
            "tty" | "tt" | "tname" => (Self::Terminal, "TT"),
            "stat" => (Self::State, "STAT"),
            "s" | "state" => (Self::ShortState, "S"),
            "stime" | "start_time" => (Self::Started, "STIME"),
            "time" | "cputime" => (Self::Time, "TIME"),
            "bsdtime" => (Self::ShortTime, "TIME"),
            "etime" => (Self::Elapsed, "ELAPSED"),
            "ni" | "nice" => (Self::Nice, "NI"),
            "nlwp" | "thcount" => (Self::Threads, "NLWP"),
            "comm" | "ucmd" | "ucomm" => (Self::Name, "COMMAND"),
            "args" | "command" => (Self::Command, "COMMAND"),
            "cmd" => (Self::Command, "CMD"),
            _ => return None,
        })
    }

    /// Characters that it has at least: a pid, as many as the greatest, as ps(1) has it.
    pub(super) fn width(self) -> usize {
        if matches!(self, Self::Pid | Self::Parent) { 7 } else { 0 }
    }

    /// Whether it is written at the right.
    pub(super) fn is_number(self) -> bool {
        !matches!(
            self,
            Self::User
                | Self::Terminal
                | Self::State
                | Self::ShortState
                | Self::Started
                | Self::Name
                | Self::Command
        )
    }

    /// What it says of a process.
    pub(super) fn field(self, process: &Process, users: &Users) -> String {
        let per_mille_of_cpu =
            || (process.cpu_ms * 1000).checked_div(process.elapsed_ms).unwrap_or_default();
        let seconds = process.cpu_ms / 1000;
        match self {
            Self::User => users.name(process.uid),
            Self::Uid => process.uid.to_string(),
            Self::Pid => process.pid.to_string(),
            Self::Parent => process.parent.to_string(),
            Self::Cpu => (per_mille_of_cpu() / 10).to_string(),
            Self::CpuPercent => tenths(per_mille_of_cpu()),
            Self::MemoryPercent => tenths(process.memory_permille.into()),
            Self::Virtual => (process.virtual_bytes / 1024).to_string(),
            Self::Resident => (process.resident_bytes / 1024).to_string(),
            Self::Terminal if process.terminal.is_empty() => "?".into(),
            Self::Terminal => process.terminal.clone(),
            Self::State => process.state.clone(),
            Self::ShortState => process.state.chars().take(1).collect(),
            Self::Started => started(process.started_s, process.elapsed_ms / 1000),
            Self::Time => clock(seconds, true),
            Self::ShortTime => format!("{}:{:02}", seconds / 60, seconds % 60),
            Self::Elapsed => clock(process.elapsed_ms / 1000, false),
            Self::Nice => process.nice.to_string(),
            Self::Threads => process.threads.to_string(),
            Self::Name => process.name.clone(),
            Self::Command => process.command.clone(),
        }
    }
}

fn tenths(per_mille: u64) -> String {
    format!("{}.{}", per_mille / 10, per_mille % 10)
}

/// `[[dd-]hh:]mm:ss`
fn clock(seconds: u64, with_hours: bool) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    let rest = format!("{minutes:02}:{:02}", seconds % 60);
    match (days, hours) {
        (0, 0) if !with_hours => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// The time of a process of the last day, the date of another, UTC.
fn started(at: u64, ago: u64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // More than any clock says.
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at.min(u64::from(u32::MAX)));
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if now.as_secs().saturating_sub(at).max(ago) < 86400 {
        return text.get(11..16).unwrap_or_default().to_owned();
    }
    let month = text.get(5..7).and_then(|month| month.parse::<usize>().ok()).unwrap_or(1);
    format!("{}{}", MONTHS[(month - 1) % 12], text.get(8..10).unwrap_or_default())
}

/// The host's users, by whose names runc's ps calls them.
pub(super) struct Users(HashMap<u32, String>);

impl Users {
    /// Of /etc/passwd.
    pub(super) fn of_the_host() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    pub(super) fn parse(text: &str) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        // Of several the first is meant.
        Self(text.lines().rev().filter_map(user).collect())
    }

    fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}
