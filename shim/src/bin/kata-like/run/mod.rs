//! `kata-like run`: one container in one virtual machine, in the foreground, without a daemon.
//!
//! The machine boots while the image is unpacked. Whatever happens, what was made is removed: by this
//! process, or, if it was killed, by the next one ([`leftovers`]).

mod foreground;
mod leftovers;
mod scratch;
pub(crate) mod signals;
pub(crate) mod source;
mod spec;
pub(crate) mod terminal;
mod unpacking;

use crate::command::create;
use crate::net::Network;
use crate::record::{Home, Reservation};
use crate::{Globals, monitor, net, users};
use anyhow::{Context, Result, bail};
use clap::Args;
use sandbox::cgroup::Placement;
use sandbox::persist;
use sandbox::settings::Settings;
use sandbox::storage;
use scratch::Scratch;
use source::Source;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::runtime;

/// Run a container in a virtual machine of its own, in the foreground.
///
/// As an OCI runtime's `run` it takes the name of the container, for the bundle that --bundle names or in whose
/// directory it is called. Otherwise it takes what to run.
///
/// SOURCE is an OCI bundle (a directory with config.json and a root file system), an OCI image layout (a
/// directory, or a tar file of one), or a docker-archive, as `docker save` and `skopeo copy … docker-archive:FILE`
/// write it. Where it holds several images, SOURCE:TAG names one.
///
/// The exit status is the command's own; 128 + N if signal N ended it; 127 if it does not exist; 126 if it
/// can't be executed; 125 if there was no machine to run it in.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Arguments {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Accepted for the sake of habit: nothing is ever left
    #[arg(long)]
    #[allow(dead_code)]
    rm: bool,
    /// Name of the container, and the host name in it [default: generated]
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable; without a value, this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Show a file or directory of the host in the container
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<String>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Let the container not write to its root file system
    #[arg(long)]
    read_only: bool,
    /// Number of vCPUs of the machine
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Memory of the machine, MiB
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Most that an image may unpack to [default: nine tenths of the free space of /var/lib/kata-like]
    #[arg(long, value_name = "MIB")]
    max_image_mib: Option<u64>,
    /// Return as soon as it runs; for bundles
    #[arg(short, long)]
    detach: bool,
    /// Leave the container to be deleted when it has ended; for bundles
    #[arg(long)]
    keep: bool,
    /// Accepted for runc's sake: what outlives its parent in the guest is not a child of this process
    #[arg(long)]
    #[allow(dead_code)]
    no_subreaper: bool,
    #[command(flatten)]
    net: net::NetworkOptions,
    #[command(flatten)]
    oci: create::Options,
    /// Bundle or image; with --bundle, or in a bundle's directory, the name of the container
    source: PathBuf,
    /// Command and its arguments [default: the bundle's or the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Nothing ran.
const FAILED: u8 = 125;

/// Runs the container to its end.
pub(crate) fn main(arguments: Arguments, globals: &Globals) -> ExitCode {
    let as_oci_runtime = arguments.is_oci();
    match run(arguments, globals) {
        Ok(status) => ExitCode::from(status),
        Err(_) if globals.report_fd.is_some() => ExitCode::FAILURE,
        Err(error) if as_oci_runtime => {
            globals.log.fatal(&error.context("kata-like run failed"));
            ExitCode::FAILURE
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kata-like: {}", crate::log::chain(&error));
            ExitCode::from(foreground::status_of(&error).unwrap_or(FAILED))
        }
    }
}

impl Arguments {
    /// Whether the one name that is given is the container's.
    fn is_oci(&self) -> bool {
        self.oci.bundle.is_some() || (!self.source.exists() && Path::new("config.json").is_file())
    }
}

fn run(mut arguments: Arguments, globals: &Globals) -> Result<u8> {
    let oci = arguments.is_oci();
    arguments.oci.check()?;
    if oci {
        let id = arguments.source.to_string_lossy().into_owned();
        if arguments.detach {
            return create::detached(&arguments.oci, &id, globals, Some(&arguments.net));
        }
        arguments.source = arguments.oci.directory()?;
        arguments.name.get_or_insert(id);
        arguments.interactive = true;
    } else if arguments.detach || arguments.keep {
        bail!("--detach and --keep are for bundles: give --bundle DIR and a name");
    }
    globals.log.begin(None)?;
    let mut config = crate::load(&globals.config)?;
    config.machine.vcpus = arguments.vcpus.or(config.machine.vcpus);
    config.machine.memory_mib = arguments.memory_mib.or(config.machine.memory_mib);
    let settings = Settings::resolve(config)?;
    let mut source = Source::open(&arguments.source)?;
    let id = arguments.name.clone().unwrap_or_else(generated_id);
    let cgroup = match &source {
        Source::Bundle(spec) => Some(Placement::of(spec, &id, globals.systemd_cgroup)),
        Source::Image(_) => None,
    };
    let network = arguments.net.decide(matches!(source, Source::Image(_)))?;
    let home = Home::new(globals.root(), &id)?;
    // Before there is a second thread: it is the thread that gets the namespace.
    storage::private_mounts().context("are you root?")?;
    leftovers::remove(globals.root());
    let mut reservation = home.reserve()?;
    if let Source::Bundle(spec) = &mut source {
        users::adopt(spec, globals.root());
        reservation.take_poststop(spec, &std::path::absolute(&arguments.source)?);
    }
    let scratch = Scratch::new(&id)?;
    let status = live((settings, cgroup, network), source, (&scratch, reservation), arguments);
    if let Err(error) = scratch.remove() {
        tracing::warn!("{error:#}");
    }
    status
}

/// Removes what a run in the foreground that was ended by force has left beside its container.
pub(crate) fn remove_abandoned() -> Result<()> {
    scratch::remove_abandoned()
}

/// The container's whole life.
fn live(
    (settings, cgroup, network): (Settings, Option<Placement>, Option<Network>),
    source: Source,
    (scratch, reservation): (&Scratch, Reservation),
    arguments: Arguments,
) -> Result<u8> {
    let keep = arguments.keep;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let signals = signals::Signals::listen()?.insistent();
        let sandbox = monitor::launch(settings, reservation.home(), cgroup)?;
        let places = (scratch, &reservation);
        let run = foreground::run(&sandbox, (source, network), places, arguments, signals);
        let status = run.await;
        monitor::keep_console(reservation.home());
        let keep = keep && status.is_ok();
        let cgroup = if keep { sandbox.keep_cgroup() } else { None };
        sandbox.stop().await;
        if keep {
            if let Some(cgroup) = cgroup {
                persist::leave_cgroup(&reservation.home().sandbox()?, cgroup)?;
            }
            reservation.leave();
        } else {
            reservation.give_up().await;
        }
        status
    });
    // A read of standard input may be under way, which only the user can end.
    runtime.shutdown_background();
    status
}

/// Of this process, so it is free.
fn generated_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("run-{:x}-{:x}", std::process::id(), now.map_or(0, |now| now.as_millis() & 0xff_ffff))
}
