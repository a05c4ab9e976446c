//! `--pid-file` and `--pidfd-socket`: whom the caller has to wait for. It is always this process that is told of.

use crate::descriptors;
use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

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
            Some(path) => write(path, std::process::id())
                .with_context(|| format!("write the pid file {}", path.display())),
            None => Ok(()),
        }
    }
}

/// Writes a pid file whole or not at all: who polls for it never reads half a number.
fn write(path: &Path, pid: u32) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A new file of a name that nobody can know: a symbolic link that waits there is not followed.
    let mut file = tempfile::Builder::new()
        .prefix(".pid-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    file.write_all(pid.to_string().as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_pid_file_replaces_what_was_there_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("pid"), directory.path().join("victim"));
        std::fs::write(&victim, "kept").unwrap();
        for planted in ["pid", ".pid"] {
            std::os::unix::fs::symlink(&victim, directory.path().join(planted)).unwrap();
        }
        write(&path, 4711).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711");
        assert!(!path.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
        assert_eq!(entries(directory.path()), 3);
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
