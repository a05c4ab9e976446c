//! A container's life in the foreground: made, started, waited for; signals and terminal passed on.

use super::Arguments;
use super::scratch::Scratch;
use super::signals::{Action, Signals};
use super::source::Source;
use super::spec;
use super::terminal::{Output, RawTerminal};
use super::unpacking::{self, Worker};
use crate::image::{self, Allowance};
use crate::monitor;
use crate::net::Network;
use crate::record::Reservation;
use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use sandbox::{Error, Sandbox};

/// Runs the source's container to its end: its exit status.
pub(super) async fn run(
    sandbox: &Sandbox,
    (source, network): (Source, Option<Network>),
    (scratch, reservation): (&Scratch, &Reservation),
    arguments: Arguments,
    mut signals: Signals,
) -> Result<u8> {
    let id = sandbox.id().to_owned();
    let interactive = arguments.interactive;
    let announcement = arguments.oci.announcement.clone();
    let keep = arguments.keep;
    let console_socket = arguments.oci.console_socket.clone();
    let bundle = std::path::absolute(&arguments.source)?;
    let (unpacking, worker) = unpacking::pair();
    let made = async {
        let mut spec = prepare(source, (scratch, worker), arguments).await?;
        let tty = monitor::has_terminal(&spec);
        monitor::check_console(tty, console_socket.as_deref(), false)?;
        let mut stdio = monitor::own_stdio(interactive, tty)?;
        // The user's terminal does what is to be done about them.
        stdio.plain_newlines = true;
        if network.is_some() {
            Network::put_into(&mut spec, reservation.home())?;
        }
        monitor::create(sandbox, reservation, (&spec, bundle), stdio, !keep).await?;
        let filled = match &network {
            Some(network) => network.fill(sandbox, reservation.home()).await,
            None => Ok(None),
        };
        Ok::<_, anyhow::Error>((tty, filled))
    };
    let made = tokio::select! {
        made = made => Ok(made?),
        number = interruption(&mut signals) => Err(number),
    };
    let (tty, filled) = match made {
        Ok(made) => made,
        Err(number) => {
            unpacking.end(interruption(&mut signals)).await;
            return Ok(128 + number as u8);
        }
    };
    let begun = async {
        let pasta = filled?;
        sandbox.start(&id).await?;
        announcement.make().map(|()| pasta)
    };
    // It goes before the sandbox.
    let _pasta = match begun.await {
        Ok(pasta) => pasta,
        Err(error) => {
            monitor::give_up(sandbox).await;
            return Err(error);
        }
    };
    let raw = if tty { RawTerminal::enter(Output::Processed)? } else { None };
    let exit = monitor::attend(sandbox, &id, tty, &mut signals).await;
    // Output that is on its way comes before the user's prompt.
    let deleted = sandbox.delete(&id, "").await;
    drop(raw);
    deleted?;
    Ok(exit?.min(255) as u8)
}

/// The first signal that asks to end.
async fn interruption(signals: &mut Signals) -> i32 {
    loop {
        match signals.next().await {
            Action::Forward(libc::SIGCONT | libc::SIGUSR1 | libc::SIGUSR2) | Action::Resize => {}
            Action::Forward(number) => return number,
        }
    }
}

async fn prepare(
    source: Source,
    (scratch, worker): (&Scratch, Worker),
    arguments: Arguments,
) -> Result<Spec> {
    let image = match source {
        Source::Bundle(mut spec) => {
            spec::adapt_bundle(&mut spec, &arguments)?;
            return Ok(*spec);
        }
        Source::Image(image) => image,
    };
    let rootfs = scratch.rootfs();
    let (root, mut trash) = scratch.open()?;
    // A thread of its own: unpacking must not hold up the machine's start.
    let most = arguments.max_image_mib.map(|mib| mib.saturating_mul(1 << 20));
    let unpacked = tokio::task::spawn_blocking(move || {
        let most = match most {
            Some(most) => most,
            None => root.free_bytes()? / 10 * 9,
        };
        let allowance = Allowance::new(most).with_files(root.free_files()? / 10 * 9);
        let allowance = allowance.until(worker.stop());
        image.unpack(&root, &mut trash, &allowance)?;
        trash.empty()?;
        Ok::<_, anyhow::Error>((image, root))
    });
    let (image, root) = unpacked.await.context("unpacking ended unexpectedly")??;
    let user = arguments.user.as_deref();
    let config = image.config().config().as_ref();
    let user = user.or(config.and_then(|config| config.user().as_deref())).unwrap_or_default();
    let account = image::account(&root, user)?;
    spec::of_image(config, &account, rootfs, &arguments)
}

/// The status by which shells tell that a command does not exist or can't be executed.
pub(super) fn status_of(error: &anyhow::Error) -> Option<u8> {
    let Some(Error::Agent { message, .. }) = error.downcast_ref() else { return None };
    let message = message.to_ascii_lowercase();
    if message.contains("executable file not found")
        || message.contains("no such file or directory")
    {
        Some(127)
    } else if message.contains("permission denied") || message.contains("exec format error") {
        Some(126)
    } else {
        None
    }
}
