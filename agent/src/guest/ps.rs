//! What /proc tells of a process.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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

    #[test]
    fn a_tree_is_ended_whole_and_told() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 300 & sleep 300; true"])
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = shell.id() as i32;
        let children = || {
            let path = format!("/proc/{pid}/task/{pid}/children");
            std::fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
        };
        while children() < 2 {
            std::thread::yield_now();
        }
        let told = end_tree(pid);
        assert_eq!(told.matches("sleep 300 in").count(), 2, "{told}");
        assert_eq!(shell.wait().unwrap().code(), None);
    }
}
