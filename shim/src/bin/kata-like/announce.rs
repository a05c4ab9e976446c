//! `--pid-file` and `--pidfd-socket`: whom the caller has to wait for. It is always this process that is told of.

use crate::descriptors;
use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::path::PathBuf;

/// Where to tell it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Announcement {
    /// File for the pid of the process that stands for it
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the process that stands for it
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
}

impl Announcement {
    /// Tells it. After an error nothing is left of the pid file.
    pub(crate) fn make(&self) -> Result<()> {
        if let Some(path) = &self.pidfd_socket {
            let socket = descriptors::connect("pidfd", path)?;
            let own = pidfd_open(getpid(), PidfdFlags::empty()).context("open a pidfd")?;
            descriptors::send(&socket, b"standard", own)?;
        }
        match &self.pid_file {
            // Who polls for it never reads half a number.
            Some(path) => sandbox::replace(path, std::process::id().to_string().as_bytes())
                .with_context(|| format!("write the pid file {}", path.display())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &std::path::Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn one_that_cannot_be_written_is_named_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: PathBuf| Announcement { pid_file: Some(path), pidfd_socket: None };
        let missing = directory.path().join("nowhere/pid");
        let error = format!("{:#}", at(missing).make().unwrap_err());
        assert!(error.contains("nowhere/pid") && error.contains("No such file"), "{error}");
        std::fs::create_dir(directory.path().join("taken")).unwrap();
        at(directory.path().join("taken")).make().unwrap_err();
        assert_eq!(entries(directory.path()), 1);
    }
}
