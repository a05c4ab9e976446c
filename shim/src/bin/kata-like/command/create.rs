//! `create`, and `run` of a bundle in the background.

use crate::Globals;
use crate::announce::Announcement;
use crate::background;
use crate::monitor::{self, Birth};
use crate::net;
use crate::record::Home;
use crate::run::source;
use crate::users;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use sandbox::cgroup::Placement;
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
    #[command(flatten)]
    pub(crate) announcement: Announcement,
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
    detached(&arguments.options, &arguments.id, globals, None)
}

/// Makes a container in the background; for a `run`, with its network, starts it.
pub(crate) fn detached(
    options: &Options,
    id: &str,
    globals: &Globals,
    run: Option<&net::NetworkOptions>,
) -> Result<u8> {
    let in_background = |reporter: &mut background::Reporter| {
        options.check()?;
        let home = Home::new(globals.root(), id)?;
        let settings = globals.settings()?;
        let network = run.map(|net| net.decide(false)).transpose()?.flatten();
        let bundle = options.directory()?;
        let mut spec = Box::new(source::bundle(&bundle)?);
        users::adopt(&mut spec, globals.root());
        let console_socket = options.console_socket.clone();
        monitor::check_console(monitor::has_terminal(&spec), console_socket.as_deref(), true)?;
        let mut reservation = home.reserve()?;
        reservation.take_poststop(&mut spec, &bundle);
        globals.log.begin(Some(&monitor::log(reservation.home())))?;
        let cgroup = Placement::of(&spec, id, globals.systemd_cgroup);
        let announcement = options.announcement.clone();
        let start = run.is_some();
        let birth = Birth { bundle, spec, console_socket, announcement, cgroup, network, start };
        monitor::live(settings, reservation, birth, reporter)
    };
    background::run(globals.report_fd, in_background)
}

impl Options {
    /// Refuses what the guest can't have.
    pub(crate) fn check(&self) -> Result<()> {
        if self.preserve_fds > 0 {
            bail!("--preserve-fds: a descriptor of the host's can't be had in the guest");
        }
        Ok(())
    }

    /// The bundle's directory, absolute.
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        let directory = self.bundle.clone().unwrap_or_else(|| ".".into());
        let named = || format!("the bundle {}", directory.display());
        let absolute = directory.canonicalize().with_context(named)?;
        if !absolute.join("config.json").exists() {
            bail!("JSON specification file config.json not found");
        }
        Ok(absolute)
    }
}
