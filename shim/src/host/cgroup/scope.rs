//! A sandbox's cgroup where systemd manages the host's: a transient scope.

use crate::error::{Error, Result};
use libcgroups::common::{CgroupManager, DEFAULT_CGROUP_ROOT};
use libcgroups::systemd;
use libcgroups::systemd::manager::{Manager, SystemdManagerError};
use std::io;
use std::time::{Duration, Instant};

/// How long systemd may take to move a process, and to forget an earlier scope of that name.
const PATIENCE: Duration = Duration::from_secs(5);

/// A scope with this process in it, `slice:prefix:name`.
///
/// # Errors
/// systemd does not run here, says no, or others are in a scope of that name.
pub fn around_this(scope: &str, id: &str) -> Result<Manager> {
    let refused =
        |what: &str| Error::FailedPrecondition(format!("linux.cgroupsPath: {scope}: {what}"));
    if !systemd::booted() {
        return Err(refused("systemd is not running on this host"));
    }
    let manager = manager(scope, id).map_err(|e| refused(&e.to_string()))?;
    // systemd would move this process into it, if it is one that manages itself: a container's, maybe.
    let inside = manager.get_all_pids().map_or(0, |pids| pids.len());
    if inside > 0 {
        let text = format!("container's cgroup is not empty: {inside} process(es) found");
        return Err(refused(&text));
    }
    let this = nix_of_libcgroups::unistd::getpid();
    let start = Instant::now();
    loop {
        match manager.add_task(this) {
            // One of that name whose end systemd has not yet dealt with.
            Err(SystemdManagerError::SystemdClient(_)) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome.map_err(|e| refused(&e.to_string())).map(|()| manager),
        }
    }
}

/// Has systemd forget a scope that nobody is in: it does so by itself when the last process leaves it, but does not hear
/// of that where its directory is removed at once. That there is none is no error.
///
/// # Errors
/// systemd's answer.
pub fn end(scope: &str) -> io::Result<()> {
    if !systemd::booted() {
        return Ok(());
    }
    manager(scope, "").and_then(|manager| manager.remove()).map_err(io::Error::other)
}

fn manager(scope: &str, id: &str) -> Result<Manager, SystemdManagerError> {
    Manager::new(DEFAULT_CGROUP_ROOT.into(), scope.into(), id.to_owned(), true, PATIENCE)
}
