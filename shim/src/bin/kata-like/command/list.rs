//! `list`: the containers below the root.

use super::state::{self, State};
use crate::Globals;
use crate::command::{json, out};
use crate::record::Home;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::io::{ErrorKind, Write as _};

/// List containers
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Shape of the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    if globals.root.is_some()
        && let Err(error) = std::fs::read_dir(globals.root())
    {
        // The default is made by the first container.
        let why = match error.kind() {
            ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => error.to_string(),
        };
        bail!("open {}: {why}", globals.root().display());
    }
    let states = states(&Home::all(globals.root()));
    match arguments.format {
        _ if arguments.quiet => {
            let ids = states.iter().map(|state| format!("{}\n", state.id));
            out::print(&ids.collect::<String>())?;
        }
        // As runc.
        Format::Json if states.is_empty() => out::print("null\n")?,
        Format::Json => out::print(&format!("{}\n", json::line(&states)?))?,
        Format::Table => {
            let mut rows =
                vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
            rows.extend(states.into_iter().map(|state| {
                let State { id, pid, status, bundle, created, owner, .. } = state;
                let bundle = bundle.display().to_string();
                [id, pid.to_string(), status.to_owned(), bundle, created, owner.to_owned()]
            }));
            out::print(&(lines(&rows).join("\n") + "\n"))?;
        }
    }
    Ok(0)
}

/// Most monitors that are asked at once: each that does not answer is waited for.
const AT_ONCE: usize = 64;

fn states(homes: &[Home]) -> Vec<State> {
    let ask = |homes: &[Home]| {
        std::thread::scope(|scope| {
            // Being made or removed by somebody else at this moment: not there.
            let ask =
                |home| move || Home::load(home).ok().map(|record| state::listed(home, record));
            let asked: Vec<_> = homes.iter().map(|home| scope.spawn(ask(home))).collect();
            asked.into_iter().filter_map(|one| one.join().ok()?).collect::<Vec<_>>()
        })
    };
    let answers = homes.chunks(AT_ONCE).flat_map(ask);
    let told = answers.map(|(state, error)| {
        if let Some(error) = error {
            let _ = writeln!(std::io::stderr(), "status for {}: {error}", state.id);
        }
        state
    });
    told.collect()
}

/// Narrowest column, and the space after the widest field.
const COLUMN: (usize, usize) = (12, 3);

/// Rows in columns, of the widths that runc's have.
fn lines<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        (widest.unwrap_or_default() + COLUMN.1).max(COLUMN.0)
    };
    // Nothing comes after the last.
    let widths: Vec<_> =
        (0..N).map(|column| if column + 1 < N { width(column) } else { 0 }).collect();
    let line = |row: &[String; N]| {
        row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_runcs() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["ID", "STATUS", "OWNER"]), row(["a-name-of-14ch", "running", "root"])];
        let expected = ["ID               STATUS      OWNER", "a-name-of-14ch   running     root"];
        assert_eq!(lines(&rows), expected);
    }
}
