//! The disk of programs, and a root file system over it that a test may change.

use crate::command;
use crate::context::Context;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// An overlay over the disk; gone when dropped.
pub struct Root(PathBuf);

impl Root {
    /// Mounts the disk, and a writable layer over it.
    pub fn mount(context: &Context) -> Result<Self> {
        // No overlay lies below this folder, wherever the lab stands.
        let root = Self(PathBuf::from(format!("/var/lib/e2e-programs/{}", context.fresh_id())));
        for directory in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(root.0.join(directory))?;
        }
        let lower = root.0.join("lower");
        mount(Command::new("mount").args(["-o", "ro"]).args(disk()?).arg(&lower))?;
        let [lower, upper, work] =
            ["lower", "upper", "work"].map(|part| root.0.join(part).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(
            Command::new("mount")
                .args(["-t", "overlay", "-o", &options, "overlay"])
                .arg(root.path()),
        )?;
        Ok(root)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.0.join("merged")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for part in ["merged", "lower"] {
            let _ = command::output(Command::new("umount").arg(self.0.join(part)));
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mount(mount: &mut Command) -> Result<()> {
    command::output(mount)?.expect_code(0).map(drop)
}

/// The last arguments of `mount`: the disk that the lab was given, or on a host's kernel its file.
pub fn disk() -> Result<Vec<String>> {
    let file = "/run/lab/host/programs.img";
    if fs::exists(file)? {
        return Ok(vec!["-o".into(), "loop".into(), file.into()]);
    }
    let label = format!("LABEL={}", lab::programs::LABEL);
    // It was plugged in a moment ago.
    let mut device = String::new();
    command::eventually("the disk of programs is there", command::DEADLINE, || {
        device = command::output(Command::new("findfs").arg(&label))?.text();
        Ok(!device.is_empty())
    })
    .context("`cargo xtask e2e programs::` attaches it")?;
    Ok(vec![device])
}
