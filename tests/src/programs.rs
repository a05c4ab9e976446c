//! A disk with a Debian of real programs, which tests run in containers; made and attached only for those tests.

use crate::cache::{self, Step};
use crate::root::{SUITE, mirror, mmdebstrap, packages, run};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

const PACKAGES: &str = include_str!("../lab/programs");

/// Raised when the recipe below changes.
const RECIPE: &[u8] = b"1";

/// What the file system on the disk is called.
pub const LABEL: &str = "programs";

/// The disk, made if need be: an ext4 file system with that Debian in it.
///
/// # Errors
/// When a tool is missing or a package can't be had.
pub fn prepare() -> Result<PathBuf> {
    let key = cache::key(&[PACKAGES.as_bytes(), SUITE.as_bytes(), RECIPE]);
    let dir = cache::dir()?.join(format!("programs-{key}"));
    cache::once(&dir, |part| {
        let step = Step::begin("lab: disk of programs", "2 minutes");
        let root = part.join("root");
        run(mmdebstrap().arg(format!("--include={}", packages(PACKAGES))).args([
            SUITE.as_ref(),
            root.as_os_str(),
            mirror()?.as_ref(),
        ]))?;
        let du = Command::new("du").args(["-sm", "--apparent-size"]).arg(&root).output()?;
        let used = String::from_utf8(du.stdout)?;
        let used: u64 = used.split_whitespace().next().context("du said nothing")?.parse()?;
        let disk = part.join("disk.img");
        // Room for what blocks and inodes take besides.
        std::fs::File::create(&disk)?.set_len((used * 5 / 4 + 64) << 20)?;
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-L", LABEL, "-d"])
            .arg(&root)
            .arg(&disk))?;
        cache::remove(&root)?;
        step.end();
        Ok(())
    })?;
    Ok(dir.join("disk.img"))
}
