//! containerd's shim: `start` starts a server for a sandbox or finds it, the server speaks the task API,
//! `delete` cleans up after a server that is gone.

mod bootstrap;
mod cleanup;
mod connections;
mod flags;
mod given_up;
mod info;
mod log;
mod publisher;
mod sandbox_api;
mod server;
mod socket;
mod start;
mod task;

use flags::Flags;
use std::process::ExitCode;

/// The runtime's name in containerd's configuration.
const RUNTIME: &str = "io.containerd.kata-like.v2";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-kata-like-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let flags = Flags::parse(std::env::args().skip(1))?;
    if flags.version {
        println!("containerd-shim-kata-like-v2:");
        println!("  Version: {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return info::print();
    }
    if flags.namespace.is_empty() || flags.id.is_empty() {
        anyhow::bail!("-namespace and -id are required");
    }
    match flags.action.as_str() {
        "start" => start::run(&flags),
        "delete" => cleanup::run(&flags),
        cleanup::LATER => cleanup::run_later(&flags),
        server::ACTION => server::run(&flags),
        other => anyhow::bail!("unknown action {other:?}: it is start or delete"),
    }
}
