//! `logs`: what the guest's kernel, its agent and its console said, and what the monitor made of it.

use crate::Globals;
use crate::command::out;
use crate::monitor;
use crate::record::Home;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Write as _};

pub(crate) fn main(id: &str, globals: &Globals) -> Result<u8> {
    let home = Home::new(globals.root(), id)?;
    home.load()?;
    // The console's log is the sandbox's while that lives.
    for path in [monitor::log(&home), home.sandbox()?.console_log(), monitor::console_log(&home)] {
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened.with_context(|| path.display().to_string())?,
        };
        let mut to = std::io::stdout().lock();
        out::or_end(std::io::copy(&mut &file, &mut to).and_then(|_| to.flush()))?;
    }
    Ok(0)
}
