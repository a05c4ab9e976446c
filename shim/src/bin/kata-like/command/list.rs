//! `list`: the containers below the root.

use super::state;
use crate::Globals;
use crate::record::Home;
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::Value;

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
    let states: Vec<Value> = Home::all(&globals.root)
        .iter()
        // Being made or removed by somebody else at this moment: not there.
        .filter_map(|home| home.load().ok().map(|record| state::of(home, &record)))
        .collect();
    match arguments.format {
        _ if arguments.quiet => states.iter().for_each(|state| println!("{}", text(state, "id"))),
        Format::Json => println!("{}", serde_json::to_string(&states)?),
        Format::Table => {
            let columns = ["id", "pid", "status", "bundle", "created", "owner"];
            let mut rows = vec![columns.map(str::to_uppercase)];
            rows.extend(states.iter().map(|state| columns.map(|column| text(state, column))));
            table(&rows);
        }
    }
    Ok(0)
}

fn text(state: &Value, field: &str) -> String {
    match &state[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prints rows in columns as wide as their widest field.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}
