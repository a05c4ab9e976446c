//! `delete`: everything of a container goes.

use crate::Globals;
use crate::monitor::call::{self, Call, Status};
use crate::record::{Home, MAKING};
use anyhow::{Context as _, Result, bail};
use clap::Args;

/// Remove a container that has stopped or never ran
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Kill it if it runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// Name of the container
    id: String,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    let (home, force) = (Home::new(globals.root(), &arguments.id)?, arguments.force);
    if force && home.load().is_err() {
        home.end_making()?;
    }
    // A create that is under way is waited for.
    let known = home.load().or_else(|_| home.lock(MAKING).and_then(|_made| home.load()));
    let record = match known {
        Ok(record) => record,
        // What a create that was killed has left.
        Err(_) if home.path().exists() => return remove(&home, force).map(|()| 0),
        Err(_) if force => return Ok(0),
        Err(error) => return Err(error),
    };
    match call::status(&home, &record) {
        Ok(Status::Stopped) => {}
        Ok(status @ (Status::Running | Status::Paused)) if !force => {
            bail!("cannot delete container {} that is not stopped: {}", home.id(), status.as_str());
        }
        Ok(_) => {
            let kill = Call::Kill { exec: String::new(), signal: libc::SIGKILL as u32, all: false };
            if let Err(error) = call::ask(&home, &kill, &[]) {
                tracing::debug!("killing {}: {error:#}", home.id());
            }
        }
        Err(error) if force => {
            tracing::warn!("ended by force: {error}");
            home.end(record.monitor)?;
        }
        Err(error) => {
            return Err(error).context(format!("cannot delete container {}", home.id()));
        }
    }
    remove(&home, force)?;
    if record.foreground {
        crate::run::remove_abandoned()?;
    }
    Ok(0)
}

/// Removes it; by force it is enough that it is gone, whoever was quicker.
fn remove(home: &Home, force: bool) -> Result<()> {
    match home.remove(force) {
        Err(_) if force && !home.path().exists() => Ok(()),
        done => done,
    }
}
