//! `spec`: a `config.json` to begin with.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Member for member as runc's, but for the host's name.
const EXAMPLE: &str = include_str!("spec.json");

const FILE: &str = "config.json";

/// Write a config.json to begin with
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory of the bundle [default: the current one]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Refused: only root can run machines
    #[arg(long)]
    rootless: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<u8> {
    if arguments.rootless {
        bail!("--rootless: only root can run machines");
    }
    write(arguments.bundle.as_deref().unwrap_or(Path::new("."))).map(|()| 0)
}

fn write(bundle: &Path) -> Result<()> {
    let path = bundle.join(FILE);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path);
    let mut file = match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {FILE} exists. Remove it first")
        }
        made => made.with_context(|| path.display().to_string())?,
    };
    file.write_all(EXAMPLE.as_bytes()).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::bundle::read_spec;

    #[test]
    fn it_is_a_spec_and_replaces_none() {
        let bundle = tempfile::tempdir().unwrap();
        write(bundle.path()).unwrap();
        let spec = read_spec(bundle.path()).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().args().as_deref().unwrap(), ["sh"]);
        let again = write(bundle.path()).unwrap_err().to_string();
        assert_eq!(again, "File config.json exists. Remove it first");
        let nowhere = format!("{:#}", write(&bundle.path().join("nowhere")).unwrap_err());
        assert!(nowhere.contains("nowhere/config.json"), "{nowhere}");
    }
}
