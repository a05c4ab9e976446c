//! `kata-like run`: one container in one virtual machine, in the foreground, without a daemon.
//!
//! The machine boots while the image is unpacked. Whatever happens, what was made is removed: by this
//! process, or, if it was killed, by the next one ([`leftovers`]).

mod foreground;
mod leftovers;
mod scratch;
mod signals;
mod source;
mod spec;
mod terminal;

use anyhow::{Context, Result};
use clap::Args;
use sandbox::paths::SandboxPaths;
use sandbox::settings::Settings;
use sandbox::{Launch, Sandbox, storage};
use scratch::Scratch;
use source::Source;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::runtime;

/// Run a container in a virtual machine of its own, in the foreground.
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
    /// Tell on standard error what happens
    #[arg(long)]
    debug: bool,
    /// Bundle or image
    source: PathBuf,
    /// Command and its arguments [default: the bundle's or the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The namespace of the sandboxes of this command, beside those of containerd.
const NAMESPACE: &str = "kata-like-run";

/// Nothing ran.
const FAILED: u8 = 125;

/// Runs the container to its end.
pub(crate) fn main(arguments: Arguments, config: &Path) -> ExitCode {
    let level = if arguments.debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    match run(arguments, config) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("kata-like: {}", chain(&error));
            ExitCode::from(foreground::status_of(&error).unwrap_or(FAILED))
        }
    }
}

fn run(arguments: Arguments, config: &Path) -> Result<u8> {
    let mut config = crate::load(config)?;
    config.machine.vcpus = arguments.vcpus.or(config.machine.vcpus);
    config.machine.memory_mib = arguments.memory_mib.or(config.machine.memory_mib);
    let settings = Settings::resolve(config)?;
    let source = Source::open(&arguments.source)?;
    let id = arguments.name.clone().unwrap_or_else(generated_id);
    let paths = SandboxPaths::new(&settings.state, NAMESPACE, &id)?;
    // Before there is a second thread: it is the thread that gets the namespace.
    storage::private_mounts().context("are you root?")?;
    leftovers::remove(&settings.state);
    let scratch = Scratch::new(&id)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let signals = signals::Signals::listen()?;
        // Nobody to tell: there is one container, and it is waited for.
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let launch = Launch { id: id.clone(), paths, settings, hostname: id.clone(), events };
        let sandbox = Sandbox::launch(launch)?;
        let status = foreground::run(&sandbox, source, &scratch, arguments, signals).await;
        sandbox.stop().await;
        status
    });
    // A read of standard input may be under way, which only the user can end.
    runtime.shutdown_background();
    if let Err(error) = scratch.remove() {
        tracing::warn!("{error:#}");
    }
    status
}

/// Error and causes in one line. A cause that its error has printed already is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Of this process, so it is free.
fn generated_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("run-{:x}-{:x}", std::process::id(), now.map_or(0, |now| now.as_millis() & 0xff_ffff))
}
