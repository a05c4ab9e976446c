//! The process behind a container of the command line: it owns the sandbox, answers other commands, and ends with
//! the container, with its exit status.
//!
//! So its pid is the one that `state` gives: it can be waited for, and a signal to it is passed on.

pub(crate) mod call;
pub(crate) mod console;
mod serve;
pub(crate) mod stats;

use crate::announce::Announcement;
use crate::background::Reporter;
use crate::net::{Network, Pasta};
use crate::record::{Home, Reservation};
use crate::run::signals::{Action, Signals};
use crate::run::terminal::{self, Output, RawTerminal};
use anyhow::{Context, Result, bail};
use call::Listener;
use oci_spec::runtime::Spec;
use sandbox::cgroup::Placement;
use sandbox::io::{Endpoint, Stdio};
use sandbox::settings::Settings;
use sandbox::{Launch, NewContainer, Sandbox, SandboxSpec, limits, storage};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a killed container may take to end before its sandbox is ended under it.
const GIVING_UP: Duration = Duration::from_secs(10);

/// A container to be made of a bundle.
pub(crate) struct Birth {
    pub(crate) bundle: PathBuf,
    pub(crate) spec: Box<Spec>,
    /// Where the master of the container's terminal goes.
    pub(crate) console_socket: Option<PathBuf>,
    /// Who is told of this process.
    pub(crate) announcement: Announcement,
    /// Where on the host its processes go.
    pub(crate) cgroup: Placement,
    /// What fills its network namespace.
    pub(crate) network: Option<Network>,
    /// Whether it is started at once.
    pub(crate) start: bool,
}

/// Makes a container, reports, and stays until it has ended: its exit status.
pub(crate) fn live(
    settings: Settings,
    reservation: Reservation,
    birth: Birth,
    reporter: &mut Reporter,
) -> Result<u8> {
    // Before there is a second thread: it is the thread that gets the namespace.
    storage::private_mounts().context("are you root?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let signals = Signals::listen()?;
        let home = reservation.home().clone();
        let sandbox = launch(settings, &home, Some(birth.cgroup.clone()))?;
        let done = match make(&sandbox, &reservation, birth).await {
            Ok(living) => {
                reservation.leave();
                reporter.ready();
                hold(&sandbox, living, signals).await
            }
            Err(error) => {
                give_up(&sandbox).await;
                // The directory goes only after what is mounted in it.
                reservation.give_up().await;
                Err(error)
            }
        };
        keep_console(&home);
        sandbox.stop().await;
        done
    });
    // A read of standard input may be under way, which nobody may ever end.
    runtime.shutdown_background();
    done
}

/// Starts the machine of a container.
pub(crate) fn launch(
    settings: Settings,
    home: &Home,
    cgroup: Option<Placement>,
) -> Result<Sandbox> {
    let id = home.id().to_owned();
    // Nobody to tell: there is one container, and it is waited for.
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    let paths = home.sandbox()?;
    limits::raise_open_files();
    let spec = SandboxSpec { cgroup, ..SandboxSpec::default() };
    Ok(Sandbox::launch(Launch { id, paths, settings, spec, events })?)
}

/// Makes a sandbox's one container, to be found and asked for by other commands from here on.
pub(crate) async fn create(
    sandbox: &Sandbox,
    reservation: &Reservation,
    (spec, bundle): (&Spec, PathBuf),
    stdio: Stdio,
    foreground: bool,
) -> Result<()> {
    let (id, rootfs) = (sandbox.id().to_owned(), Vec::new());
    let new = NewContainer { id, spec: spec.clone(), bundle: bundle.clone(), rootfs, stdio };
    sandbox.create(new).await?;
    tokio::spawn(serve::serve(Listener::bind(reservation.home())?, sandbox.clone()));
    reservation.record(spec, bundle, foreground)
}

/// Makes the container and, if asked to, starts it; its terminal in raw mode, if it has one.
async fn make(sandbox: &Sandbox, reservation: &Reservation, birth: Birth) -> Result<Living> {
    let Birth { bundle, mut spec, console_socket, announcement, network, start, .. } = birth;
    if network.is_some() {
        Network::put_into(&mut spec, reservation.home())?;
    }
    let tty = has_terminal(&spec);
    if let Some(socket) = &console_socket {
        console::take_over(socket, terminal_size(&spec))?;
    }
    let raw = if tty { RawTerminal::enter(Output::Raw)? } else { None };
    create(sandbox, reservation, (&spec, bundle), own_stdio(true, tty)?, false).await?;
    let pasta = match network {
        Some(network) => network.fill(sandbox, reservation.home()).await?,
        None => None,
    };
    if start {
        sandbox.start(sandbox.id()).await?;
    }
    announcement.make()?;
    Ok(Living { tty, _raw: raw, _pasta: pasta })
}

/// Ends a container that is not wanted after all, with its hooks, and its sandbox.
pub(crate) async fn give_up(sandbox: &Sandbox) {
    let id = sandbox.id();
    let ended = async {
        // It may have ended by itself, or never have come to be.
        let _ = sandbox.kill(id, "", libc::SIGKILL as u32, true).await;
        sandbox.wait(id, "").await
    };
    if let Ok(Ok(_)) = tokio::time::timeout(GIVING_UP, ended).await
        && let Err(error) = sandbox.delete(id, "").await
    {
        tracing::warn!("giving container {id} up: {}", error.chain());
    }
    sandbox.stop().await;
}

/// What there is as long as a container lives: whether it has a terminal, what restores this process's own, and its
/// network.
struct Living {
    tty: bool,
    _raw: Option<RawTerminal>,
    _pasta: Option<Pasta>,
}

async fn hold(sandbox: &Sandbox, living: Living, mut signals: Signals) -> Result<u8> {
    let id = sandbox.id();
    let exit = attend(sandbox, id, living.tty, &mut signals).await;
    // Hands over what output there is still.
    sandbox.delete(id, "").await?;
    Ok(exit?.min(255) as u8)
}

/// Keeps the guest's console for `logs`: the sandbox's own directory goes with the sandbox.
pub(crate) fn keep_console(home: &Home) {
    if let Ok(paths) = home.sandbox()
        && let Err(error) = std::fs::copy(paths.console_log(), console_log(home))
    {
        tracing::debug!("keeping the console's log: {error}");
    }
}

/// Where the monitor of a container logs unless it is told otherwise.
pub(crate) fn log(home: &Home) -> PathBuf {
    home.path().join("log")
}

/// Where the console's log of a container is that has ended.
pub(crate) fn console_log(home: &Home) -> PathBuf {
    home.path().join("console.log")
}

/// Whether the container's process has a terminal.
pub(crate) fn has_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false))
}

/// Columns and rows that the spec asks for.
fn terminal_size(spec: &Spec) -> Option<(u16, u16)> {
    let size = spec.process().as_ref()?.console_size()?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

/// Checks that a terminal has somewhere to go to, and nothing goes there that is none.
pub(crate) fn check_console(tty: bool, socket: Option<&Path>, detached: bool) -> Result<()> {
    match socket {
        None if detached && tty => {
            bail!("cannot allocate tty if kata-like will detach without setting console socket")
        }
        Some(_) if !(detached && tty) => {
            bail!("cannot use console socket if kata-like will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// This process's own streams.
pub(crate) fn own_stdio(input: bool, tty: bool) -> Result<Stdio> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| -> std::io::Result<Endpoint> {
        Ok(Endpoint::File(File::from(fd.try_clone_to_owned()?)))
    };
    let stdin = if input { copy(std::io::stdin().as_fd())? } else { Endpoint::None };
    let stdout = copy(std::io::stdout().as_fd())?;
    let stderr = if tty { Endpoint::None } else { copy(std::io::stderr().as_fd())? };
    Ok(Stdio { stdin, stdout, stderr, ..Stdio::default() })
}

/// Waits for the container to end and passes on what comes for it.
pub(crate) async fn attend(
    sandbox: &Sandbox,
    id: &str,
    tty: bool,
    signals: &mut Signals,
) -> Result<u32> {
    if tty {
        resize(sandbox, id).await;
    }
    let exit = sandbox.wait(id, "");
    tokio::pin!(exit);
    loop {
        tokio::select! {
            exit = &mut exit => return Ok(exit?.status),
            action = signals.next() => match action {
                Action::Resize if tty => resize(sandbox, id).await,
                Action::Resize => {}
                Action::Forward(number) => {
                    if let Err(error) = sandbox.kill(id, "", number as u32, false).await {
                        tracing::debug!("signal {number}: {}", error.chain());
                    }
                }
            },
        }
    }
}

async fn resize(sandbox: &Sandbox, id: &str) {
    let Some((columns, rows)) = terminal::size() else { return };
    if let Err(error) = sandbox.resize(id, "", columns, rows).await {
        tracing::debug!("size of the terminal: {}", error.chain());
    }
}
