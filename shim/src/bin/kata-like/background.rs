//! A command that goes on in the background once it has something to show: the same command, started again with
//! one more option, in a session of its own.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use protocol::control::{self, ControlError};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the process in the background tells the one that waits for it.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready,
    Failed(String),
}

/// Tells the waiting process how it went.
pub(crate) struct Reporter(Option<OwnedFd>);

impl Reporter {
    /// For a command in the foreground: nobody waits.
    pub(crate) fn nobody() -> Self {
        Self(None)
    }

    /// The waiting process may end.
    pub(crate) fn ready(&mut self) {
        self.tell(&Report::Ready);
    }

    fn tell(&mut self, report: &Report) {
        if let Some(socket) = self.0.take() {
            // Who waited may have been killed; that changes nothing here.
            let _ = control::send(&socket, report, &[]);
        }
    }
}

/// A path that a command in the background was given, as that process finds it: the descriptors that its caller means
/// are those of the process that waits for it.
pub(crate) fn as_called(path: &Path) -> PathBuf {
    let of = |directory| path.strip_prefix(directory).ok();
    match of("/dev/fd").or_else(|| of("/proc/self/fd")) {
        Some(number) => {
            let waiting = nix::unistd::getppid().to_string();
            Path::new("/proc").join(waiting).join("fd").join(number)
        }
        None => path.to_owned(),
    }
}

/// Starts this command again in the background, and waits until it is ready.
///
/// In the background it is `work` that runs; its answer is the process's exit status.
pub(crate) fn run(
    report_fd: Option<RawFd>,
    work: impl FnOnce(&mut Reporter) -> Result<u8>,
) -> Result<u8> {
    let Some(fd) = report_fd else {
        return start().map(|()| 0);
    };
    // A session of its own: neither the caller's Ctrl-C nor its end is meant for this process.
    nix::unistd::setsid().context("make a session")?;
    // SAFETY: `start` made this descriptor for this process and told only it; nothing else owns it.
    let mut reporter = Reporter(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    let done = work(&mut reporter);
    if let Err(error) = &done {
        reporter.tell(&Report::Failed(crate::log::chain(error)));
    }
    done
}

/// Returns when the process in the background is ready.
fn start() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut child = Command::new("/proc/self/exe")
        .arg(format!("--report-fd={}", theirs.as_raw_fd()))
        .args(std::env::args_os().skip(1))
        .spawn()
        .context("start this program again")?;
    drop(theirs);
    match control::receive(&ours) {
        Ok((Report::Ready, _)) => Ok(()),
        Ok((Report::Failed(message), _)) => {
            // What it made is removed when it has ended.
            let _ = child.wait();
            bail!(message)
        }
        Err(ControlError::Closed) => {
            bail!("the process in the background ended without a word: {}", child.wait()?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_process_that_waits() {
        let theirs = format!("/proc/{}/fd/63", std::os::unix::process::parent_id());
        for path in ["/dev/fd/63", "/proc/self/fd/63"] {
            assert_eq!(as_called(Path::new(path)), Path::new(&theirs));
        }
        assert_eq!(as_called(Path::new("fd/63")), Path::new("fd/63"));
    }
}
