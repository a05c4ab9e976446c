//! The same Debian as an image of one EROFS layer on containerd's snapshotter, whose container has it and an ext4 for what it
//! writes as disks.
//!
//! The layer is made where the snapshotter would have it, of the folder, so that nothing is unpacked: the snapshot has the
//! name that the image's only layer would have.

use crate::inside::command;
use anyhow::{Context, Result, ensure};
use lab::containerd::Version;
use lab::image;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image's name.
const IMAGE: &str = "bench:erofs";

/// What stands for the layer in the image.
const LAYER: &[u8] = b"made by the benchmark";

/// The image; gone when dropped.
pub struct Image {
    snapshots: PathBuf,
    layer: String,
}

fn ctr(words: &[&str]) -> Command {
    let mut ctr = Version::V2_4.ctr();
    ctr.args(words);
    ctr
}

fn snapshot(words: &[&str]) -> Command {
    ctr(&[&["snapshots", "--snapshotter=erofs"], words].concat())
}

impl Image {
    /// Of what a folder has; `work` is for what is in the way, in memory as the snapshots are.
    pub fn of(folder: &Path, work: &Path) -> Result<Self> {
        let snapshots =
            Path::new(&Version::V2_4.root()).join("io.containerd.snapshotter.v1.erofs/snapshots");
        command(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&snapshots))?;
        let mut made = Self { snapshots, layer: String::new() };
        let layer = work.join("layer");
        fs::write(&layer, LAYER)?;
        let sum = Command::new("sha256sum").arg(&layer).output().context("sha256sum")?;
        let digest = String::from_utf8(sum.stdout)?;
        made.layer = format!("sha256:{}", digest.split_whitespace().next().context("sha256sum")?);
        let (layout, archive) = (work.join("layout"), work.join("image.tar"));
        image::write_layout(&layout, &[layer], &[(IMAGE, json!({}))])?;
        image::tar(&layout, &archive)?;
        let archive = archive.display().to_string();
        command(&mut ctr(&["images", "import", "--no-unpack", &archive]))?;
        command(&mut snapshot(&["prepare", "bench-layer"]))?;
        let mut entries = fs::read_dir(&made.snapshots)?;
        let directory = entries.next().context("a snapshot")??.path();
        ensure!(
            entries.next().is_none(),
            "there are more snapshots in {}",
            made.snapshots.display()
        );
        let mut make = Command::new("mkfs.erofs");
        make.args(["--quiet", "-Enoinline_data"]).arg(directory.join("layer.erofs")).arg(folder);
        command(&mut make)?;
        command(&mut snapshot(&["commit", &made.layer, "bench-layer"]))?;
        Ok(made)
    }

    /// Has a script run in a container of it, with a program of the host's.
    #[allow(clippy::unused_self)] // It is there as long as the image is.
    pub fn run(&self, runtime: &str, program: &str, script: &str) -> Command {
        let program = format!("type=bind,src={program},dst=/run/inside,options=bind:ro");
        // As in the other containers it is a file of the root's.
        let script = format!("cp /run/inside /usr/bin/inside; {script}");
        let mut run = ctr(&["run", "--rm", "--runtime", runtime]);
        run.args(["--snapshotter=erofs", "--memory-limit", &(512_u64 << 20).to_string()]);
        run.args([
            "--env",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "--env",
            "HOME=/root",
            "--env",
            "LC_ALL=C",
        ]);
        run.args(["--mount", &program, IMAGE, "bench-inside", "bash", "-c", &script]);
        run
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = command(&mut ctr(&["images", "rm", "--sync", IMAGE]));
        if !self.layer.is_empty() {
            let _ = command(&mut snapshot(&["rm", &self.layer]));
        }
        let _ = command(Command::new("umount").arg(&self.snapshots));
    }
}
