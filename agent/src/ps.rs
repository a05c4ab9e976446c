//! What /proc tells of a process.

use protocol::agent::ProcessInfo;
use std::fs::File;
use std::io::Read as _;

/// Most bytes of a command line that are told.
const MAX_COMMAND: u64 = 4096;

/// Describes a process; of one that has ended meanwhile only the pid is known.
pub fn describe(pid: i32) -> ProcessInfo {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()
    };
    let number = |name: &str| field(name).and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut arguments = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        // A process that ends just now has none.
        let _ = file.take(MAX_COMMAND).read_to_end(&mut arguments);
    }
    let arguments = String::from_utf8_lossy(&arguments);
    let command = match arguments.trim_end_matches('\0') {
        "" => field("Name:").map(|name| format!("[{name}]")).unwrap_or_default(),
        words => words.replace('\0', " "),
    };
    ProcessInfo {
        pid: pid as u32,
        parent: number("PPid:"),
        uid: number("Uid:"),
        command,
        ..ProcessInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described_and_one_that_is_gone_is_no_error() {
        let mut child = std::process::Command::new("sleep").args(["100", "200"]).spawn().unwrap();
        let pid = child.id() as i32;
        let sleeps = || describe(pid).command == "sleep 100 200";
        while !sleeps() {
            std::thread::yield_now();
        }
        assert_eq!(describe(pid).parent, std::process::id());
        child.kill().unwrap();
        // Ended and not waited for: it has a name and no arguments any more.
        while describe(pid).command != "[sleep]" {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(describe(pid).command, "");
    }
}
