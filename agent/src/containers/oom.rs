//! Waits for the kernel to kill a process of a container for lack of memory.

use crate::guest::cgroup::Cgroup;
use crate::io::transport;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::AsFd as _;

/// Waits until more than `seen` processes were killed; how many.
///
/// # Errors
/// When the cgroup's events cannot be watched, as when it is gone.
pub async fn wait(cgroup: &Cgroup, seen: u64) -> io::Result<u64> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(&cgroup.path("memory.events"), flags)?;
    let changed = transport::pollable(inotify.as_fd().try_clone_to_owned()?)?;
    loop {
        // The watch is there first: no change between the two is missed.
        let kills = cgroup.oom_kills()?;
        if kills > seen {
            return Ok(kills);
        }
        let mut ready = changed.readable().await?;
        let _ = inotify.read_events(); // what it says is read from the file itself
        ready.clear_ready();
    }
}
