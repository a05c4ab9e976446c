//! Completions and manual pages, from the definitions of the command line itself.

use super::out;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// Print what lets a shell complete this command line
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

/// Write the manual pages
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where to
    directory: PathBuf,
}

pub(crate) fn completion(arguments: &Completion) -> Result<u8> {
    let mut command = crate::CommandLine::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "kata-like", &mut script);
    out::print(&String::from_utf8(script)?)?;
    Ok(0)
}

pub(crate) fn man(arguments: &Man) -> Result<u8> {
    let directory = &arguments.directory;
    let named = || format!("write manual pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(named)?;
    let command = crate::CommandLine::command().version(env!("CARGO_PKG_VERSION"));
    clap_mangen::generate_to(command, directory).with_context(named)?;
    Ok(0)
}
