//! The guest's PID 1: prepares the guest, answers the shim over vsock, runs containers.
//!
//! In order: mounts and a root of its own ([`guest::boot`]), a single-threaded process that forks for it
//! ([`work::zygote`]), then one thread with an async runtime that serves the API ([`server`]), carries
//! standard streams ([`io::streams`]), reaps ([`guest::reaper`]) and sends the log to the host ([`guest::logging`]).
//! Connecting the log is the ready signal, so it comes last.

mod containers;
mod error;
mod guest;
mod io;
mod server;
mod spec;
mod work;

use anyhow::Context as _;
use containers::Containers;
use guest::reaper::Reaper;
use guest::{boot, clock, logging, pod_init};
use io::forward;
use io::streams::{self, Streams};
use io::transport::Transport;
use spec::id_maps;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use work::zygote::Zygote;

fn main() -> ExitCode {
    if let Some(code) = id_maps::run().or_else(pod_init::run) {
        return code;
    }
    if std::process::id() != 1 {
        // On a host it would put an empty root over the host's own.
        eprintln!("kata-like-agent: this is the first process of a guest, and of no use elsewhere");
        return ExitCode::FAILURE;
    }
    logging::install_panic_hook();
    if let Err(error) = run() {
        // PID 1 that returns is a kernel panic anyway: this way its text is on the console.
        panic!("{error:#}");
    }
    ExitCode::SUCCESS
}

fn run() -> anyhow::Result<()> {
    boot::prepare().context("preparing the guest")?;
    id_maps::install().context("naming the id mappers")?;
    let zygote = Zygote::start().context("starting the zygote")?;
    let log = logging::install();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        // Once there is one, what blocks gets done, also when the guest has no more threads to give.
        .thread_keep_alive(Duration::from_secs(u32::MAX.into()))
        .build()
        .context("starting the runtime")?
        .block_on(serve(zygote, log))
}

/// Listens, tells the host so by connecting the log, and serves until the machine ends.
async fn serve(zygote: Zygote, log: Arc<logging::Log>) -> anyhow::Result<()> {
    let transport = Transport::from_env();
    tokio::task::spawn_blocking(|| ());
    let reaper = Arc::new(Reaper::default());
    let mut zygote_exit = reaper.expect().claim(zygote.pid());
    let reaping = reaper.start().context("catching SIGCHLD")?;
    tokio::spawn(async move {
        let _ = zygote_exit.wait_for(Option::is_some).await;
        tracing::error!("the zygote has ended: what runs goes on, nothing new can be started");
    });
    let streams = Arc::new(Streams::default());
    let stdio = transport.listen(protocol::ports::STDIO).context("listening for streams")?;
    tokio::spawn(streams::accept_numbered(stdio, Arc::clone(&streams)));
    let forwarded =
        transport.listen(protocol::ports::FORWARD).context("listening for connections")?;
    tokio::spawn(streams::accept(forwarded, forward::serve));
    let containers = Arc::new(Containers::new(zygote, reaper, streams));
    let _server = server::start(&transport, containers).await.context("serving the API")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    if matches!(transport, Transport::Vsock) {
        tokio::spawn(clock::follow());
    }
    tokio::spawn(logging::forward(log, transport));
    reaping.await.context("the reaper ended")
}
