//! `ps`: a container's processes, as its guest numbers them.

use super::list::{Format, table};
use crate::Globals;
use crate::monitor::call::{self, Answer, Call};
use crate::record::Home;
use anyhow::{Result, bail};
use clap::Args;

/// List a container's processes, by the pids of its guest
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Shape of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Name of the container
    id: String,
    /// Refused: options of the host's ps say nothing about a guest's processes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    options: Vec<String>,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    if !arguments.options.is_empty() {
        bail!("options of the host's ps say nothing about a guest's processes");
    }
    let home = Home::new(&globals.root, &arguments.id)?;
    let Answer::Processes(processes) = call::ask(&home, &Call::Processes, &[])? else {
        bail!("the container's monitor answered something else");
    };
    match arguments.format {
        Format::Json => {
            let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
            println!("{}", serde_json::to_string(&pids)?);
        }
        Format::Table => {
            let mut rows = vec![["UID", "PID", "PPID", "CMD"].map(str::to_owned)];
            rows.extend(processes.into_iter().map(|process| {
                let [uid, pid, parent] = [process.uid, process.pid, process.parent];
                [uid.to_string(), pid.to_string(), parent.to_string(), process.command]
            }));
            table(&rows);
        }
    }
    Ok(0)
}
