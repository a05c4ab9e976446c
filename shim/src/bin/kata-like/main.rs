//! `kata-like`: the command line. Each subcommand is a module.

mod check;
mod image;
mod run;

use clap::{Parser, Subcommand};
use sandbox::config::{self, Config};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Containers in virtual machines of their own.
#[derive(Debug, Parser)]
#[command(name = "kata-like", version)]
struct CommandLine {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Run(Box<run::Arguments>),
}

fn main() -> ExitCode {
    let CommandLine { config, command } = CommandLine::parse();
    match command {
        Command::Check(arguments) => check::main(&arguments, &config),
        Command::Run(arguments) => run::main(*arguments, &config),
    }
}

/// What a configuration file says. Only the default one may be missing.
fn load(path: &Path) -> sandbox::Result<Config> {
    if path == Path::new(config::DEFAULT_PATH) {
        Config::load_default()
    } else {
        Config::load(path)
    }
}
