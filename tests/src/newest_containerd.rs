//! The newest containerd, built from its Go module where Go is at hand; the tests run against it, `make run` doesn't.

use crate::cache::{self, Step};
use crate::root::run;
use anyhow::Result;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const MODULE: &str = "github.com/containerd/containerd/v2";
const VERSION: &str = "v2.4.2";
const GO_MOD: &str = "module lab/containerd\ngo 1.26.6\n";

/// What it is built from, for the keys of what holds it; none without Go.
pub fn key() -> Option<String> {
    let mut go = Command::new("go");
    go.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
    let has_go = go.status().is_ok_and(|status| status.success());
    has_go.then(|| cache::key(&[VERSION.as_bytes(), GO_MOD.as_bytes()]))
}

/// A folder with containerd, ctr and the runc shim, built if need be.
///
/// # Errors
/// When the module can't be had or doesn't build.
pub fn prepare(key: &str) -> Result<PathBuf> {
    let dir = cache::dir()?.join(format!("containerd-{VERSION}-{key}"));
    cache::once(&dir, |part| {
        let step = Step::begin("lab: containerd 2.4", "1 to 4 minutes");
        let module = part.join("module");
        std::fs::create_dir_all(&module)?;
        let require = format!("require {MODULE} {VERSION}\n");
        std::fs::write(module.join("go.mod"), format!("{GO_MOD}{require}"))?;
        let version = VERSION.trim_start_matches('v');
        run(Command::new("go")
            .args(["build", "-mod=mod", "-trimpath", "-ldflags"])
            .arg(format!("-s -w -X {MODULE}/version.Version={version}"))
            .args(["-o", "../bin/"])
            .args(
                ["containerd", "ctr", "containerd-shim-runc-v2"]
                    .map(|command| format!("{MODULE}/cmd/{command}")),
            )
            .env("CGO_ENABLED", "0")
            .current_dir(&module))?;
        cache::remove(&module)?;
        step.end();
        Ok(())
    })?;
    Ok(dir.join("bin"))
}
