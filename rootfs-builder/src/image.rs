//! What the guest image holds, and how it is made.

use crate::cpio::{Entry, Kind, Writer};
use crate::elf::{self, NotAnAgent};
use crate::publish;
use std::io;
use std::path::{Path, PathBuf};

/// The directories that exist before the agent has mounted anything; it mounts over each of them.
/// Directories come before what is in them.
const DIRECTORIES: [(&str, u32); 5] =
    [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// The kernel opens this as the first process's standard streams, before there is a devtmpfs.
const CONSOLE: Entry =
    Entry { path: "dev/console", mode: 0o600, kind: Kind::CharDevice { major: 5, minor: 1 } };

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The agent's file could not be read.
    #[error(
        "cannot read the agent {path}: build it first (cargo xtask build), or name another with --agent"
    )]
    ReadAgent {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file is nothing that a guest could start with.
    #[error(
        "{path} cannot be the guest's first process: build the agent statically \
         (cargo xtask build)"
    )]
    UnfitAgent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NotAnAgent,
    },
    /// The archive could not be made.
    #[error("cannot pack the guest image")]
    Pack(#[source] io::Error),
    /// The image could not be written.
    #[error("cannot write the guest image {path}")]
    Write {
        /// Where it was to be.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// Makes the image with the executable at `agent` as its first process and puts it at `out`, in
/// one step: who reads `out` sees the old image or the new one. Gives the image's size in bytes.
///
/// # Errors
/// When the agent is missing or unfit, and when the image cannot be written.
pub fn build(agent: &Path, out: &Path) -> Result<u64, BuildError> {
    let executable = std::fs::read(agent)
        .map_err(|source| BuildError::ReadAgent { path: agent.into(), source })?;
    elf::check_static_executable(&executable)
        .map_err(|source| BuildError::UnfitAgent { path: agent.into(), source })?;
    let image = pack(&executable).map_err(BuildError::Pack)?;
    publish::write_atomically(out, &image)
        .map_err(|source| BuildError::Write { path: out.into(), source })?;
    Ok(image.len() as u64)
}

/// The image's bytes: a function of the agent's bytes and of nothing else.
///
/// # Errors
/// When the agent is too big for the format (4 GiB).
pub fn pack(agent: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Writer::new(Vec::with_capacity(agent.len() + 4096));
    for (path, mode) in DIRECTORIES {
        archive.append(&Entry { path, mode, kind: Kind::Directory })?;
    }
    archive.append(&CONSOLE)?;
    archive.append(&Entry { path: "init", mode: 0o755, kind: Kind::File(agent) })?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parent_comes_before_its_children() {
        let image = pack(b"agent").unwrap();
        let text = String::from_utf8_lossy(&image).into_owned();
        assert!(text.find("dev\0").unwrap() < text.find("dev/console\0").unwrap());
    }

    #[test]
    fn the_image_ends_on_a_whole_block() {
        for length in 0..9 {
            assert_eq!(pack(&vec![7; length]).unwrap().len() % 512, 0);
        }
    }
}
