//! The OCI runtime's command line: each command is a module, thin over the container's monitor.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod features;
pub(crate) mod json;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod manual;
pub(crate) mod out;
pub(crate) mod ps;
pub(crate) mod spec;
pub(crate) mod state;
pub(crate) mod update;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Seek as _, Write as _};

/// A file for the monitor: a packet has a limit, a file has not.
pub(crate) fn memory_file(content: &[u8]) -> Result<File> {
    let file = memfd_create("kata-like", MemfdFlags::CLOEXEC).context("make a file in memory")?;
    let mut file = File::from(file);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}
