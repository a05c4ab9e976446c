//! `kill`: a signal by name or number.

use crate::Globals;
use crate::monitor::call::{self, Call};
use crate::record::Home;
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;

/// Largest number of a signal.
const MAX_SIGNAL: u32 = 64;

/// Send a signal to a container's process
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Send it to every process of the container
    #[arg(short, long)]
    all: bool,
    /// Name of the container
    id: String,
    /// Name, with or without SIG, or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    let home = Home::new(globals.root(), &arguments.id)?;
    let signal = number(&arguments.signal)?;
    let call = Call::Kill { exec: String::new(), signal, all: arguments.all };
    match call::ask(&home, &call, &[]) {
        // All of none have it.
        Err(error) if arguments.all && call::is_not_running(&error) => Ok(0),
        answer => answer.map(|_| 0),
    }
}

fn number(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse::<u32>() {
        if number > MAX_SIGNAL {
            bail!("unknown signal {text:?}");
        }
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let signal: Signal =
        format!("SIG{name}").parse().ok().with_context(|| format!("unknown signal {text:?}"))?;
    Ok(signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(number(text).unwrap(), 9, "{text}");
        }
        assert_eq!(number("0").unwrap(), 0);
        for text in ["", "65", "-1", "NOSUCH"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
