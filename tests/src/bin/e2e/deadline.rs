//! No test runs for ever: what it waits for is killed at its deadline, so that it fails and the next one begins.

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Runs a test; after `limit` kills the processes that it has started and waits for.
///
/// # Errors
/// The test's own, with what was killed when it took too long.
pub fn within(limit: Duration, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let mut killed = String::new();
        // Again and again: the test may start others after those.
        let mut patience = limit;
        while ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            kill_children(&mut killed);
            patience = Duration::from_secs(1);
        }
        killed
    });
    let outcome = test();
    drop(done);
    let killed = watchdog.join().unwrap_or_default();
    match outcome {
        outcome if killed.is_empty() => outcome,
        Ok(()) => bail!("took longer than {} s; killed:{killed}", limit.as_secs()),
        Err(error) => {
            Err(error.context(format!("took longer than {} s; killed:{killed}", limit.as_secs())))
        }
    }
}

/// Kills this process's children and notes what each was doing.
fn kill_children(noted: &mut String) {
    let read =
        |pid: i32, file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let status = read(pid, "status");
        let parent = format!("\nPPid:\t{}\n", std::process::id());
        if !String::from_utf8_lossy(&status).contains(&parent) {
            continue;
        }
        let command = String::from_utf8_lossy(&read(pid, "cmdline")).replace('\0', " ");
        let waits_in = String::from_utf8_lossy(&read(pid, "wchan")).into_owned();
        let _ = write!(noted, "\n  {pid} {command}({waits_in})");
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
