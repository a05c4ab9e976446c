//! For tests: a command's arguments, parsed as the command line would.

use clap::{Args, Parser};

#[derive(Parser)]
struct Alone<A: Args> {
    #[command(flatten)]
    arguments: A,
}

/// Parses what comes after the command's name.
pub(crate) fn parsed<A: Args>(words: &[&str]) -> Result<A, clap::Error> {
    Alone::try_parse_from([&["command"], words].concat()).map(|alone| alone.arguments)
}
