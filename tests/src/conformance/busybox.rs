//! A busybox as its project configures it: the suite reads the words of its tools, and Debian's leaves some out.

use crate::cache::{self, Step};
use crate::root::{SUITE, mirror, run};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Static, and without what newer headers of the kernel no longer have.
const CONFIGURE: &str = "make -s defconfig && \
    sed -i -e 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config && \
    { yes '' | make -s oldconfig; }";

/// The program, made if need be.
pub fn prepare() -> Result<PathBuf> {
    let key = cache::key(&[include_bytes!("busybox.rs"), SUITE.as_bytes()]);
    let dir = cache::dir()?.join(format!("busybox-{key}"));
    cache::once(&dir, |part| {
        let step = Step::begin("conformance: busybox", "2 minutes");
        let work = part.join("work");
        std::fs::copy(build(&work)?, part.join("busybox"))?;
        cache::remove(&work)?;
        step.end();
        Ok(())
    })?;
    Ok(dir.join("busybox"))
}

/// Fetches Debian's source of it into `dir`, and builds it.
fn build(dir: &Path) -> Result<PathBuf> {
    for name in ["lists/partial", "archives/partial", "source"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let sources = dir.join("sources.list");
    let signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(&sources, format!("deb-src [{signed}] {} {SUITE} main\n", mirror()?))?;
    // In folders of its own: this machine's lists stay as they are.
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet", "--option", &format!("Dir::State::Lists={}/lists", dir.display())])
            .args(["--option", &format!("Dir::Cache::Archives={}/archives", dir.display())])
            .args(["--option", &format!("Dir::Etc::SourceList={}", sources.display())])
            .args(["--option", "Dir::Etc::SourceParts=/dev/null"])
            .args(["--option", "Dir::Cache::pkgcache=", "--option", "Dir::Cache::srcpkgcache="])
            .args([
                "--option",
                "Acquire::Check-Valid-Until=false",
                "--option",
                "APT::Sandbox::User=root",
            ])
            .args(args)
            .current_dir(dir.join("source"));
        run(&mut apt)
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "busybox"])?;
    let is_upstream = |path: &PathBuf| path.to_string_lossy().ends_with(".orig.tar.bz2");
    let files = std::fs::read_dir(dir.join("source"))?.flatten().map(|entry| entry.path());
    let archive = files.into_iter().find(is_upstream).context("no source of busybox came")?;
    let tree = dir.join("tree");
    std::fs::create_dir(&tree)?;
    run(Command::new("tar")
        .args(["--strip-components=1", "-C"])
        .arg(&tree)
        .arg("-xf")
        .arg(archive))?;
    run(Command::new("sh").args(["-c", CONFIGURE]).current_dir(&tree))?;
    run(Command::new("make").args(["-s", "-j2", "busybox"]).current_dir(&tree))?;
    Ok(tree.join("busybox"))
}
