//! `create`, and `run` of a bundle in the background.

use crate::Globals;
use crate::background;
use crate::monitor::{self, Birth};
use crate::record::Home;
use crate::run::source;
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// What both have in common.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// Unix socket that receives the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File for the pid of the process that stands for the container
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Refused unless 0: a descriptor of the host's can't be had in the guest
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted for runc's sake: the root is always changed in the guest
    #[arg(long)]
    no_pivot: bool,
    /// Accepted for runc's sake: the guest's keyrings are its own
    #[arg(long)]
    no_new_keyring: bool,
}

/// Create a container; its process waits for `start`
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Name of the container
    id: String,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    detached(&arguments.options, &arguments.id, globals, false)
}

/// Makes a container in the background and, if asked to, starts it.
pub(crate) fn detached(options: &Options, id: &str, globals: &Globals, start: bool) -> Result<u8> {
    let in_background = |reporter: &mut background::Reporter| {
        if options.preserve_fds > 0 {
            bail!("--preserve-fds: a descriptor of the host's can't be had in the guest");
        }
        let home = Home::new(&globals.root, id)?;
        let settings = globals.settings()?;
        let directory = options.bundle.clone().unwrap_or_else(|| ".".into()).canonicalize();
        let bundle = directory.map_err(|error| anyhow::anyhow!("the bundle: {error}"))?;
        let spec = Box::new(source::bundle(&bundle)?);
        let console_socket = options.console_socket.clone();
        monitor::check_console(monitor::has_terminal(&spec), console_socket.as_deref(), true)?;
        let reservation = home.reserve()?;
        globals.log.begin(Some(&monitor::log(reservation.home())))?;
        let birth = Birth { bundle, spec, console_socket, start };
        monitor::live(settings, reservation, birth, reporter)
    };
    background::run(globals.report_fd, options.pid_file.as_deref(), in_background)
}
