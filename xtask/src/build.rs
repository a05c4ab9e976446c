//! Builds the product: static binaries, guest image, guest kernel; and collects them as they are installed.

use ::lab::cache::Step;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Packages of the product, their binaries, and the folder each is installed in.
const PRODUCT: [(&str, &str, &str); 5] = [
    ("kata-like-vmm", "kata-like-vmm", "usr/libexec/kata-like"),
    ("kata-like-fs", "kata-like-fs", "usr/libexec/kata-like"),
    ("kata-like-shim", "containerd-shim-kata-like-v2", "usr/bin"),
    ("kata-like-shim", "kata-like", "usr/bin"),
    ("kata-like-agent", "kata-like-agent", ""),
];

/// The checkout.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where everything is built.
pub fn target_dir() -> PathBuf {
    workspace().join("target")
}

/// The tree as installed: `usr/bin`, `usr/libexec/kata-like`, `usr/share/kata-like`.
pub fn install_dir() -> PathBuf {
    target_dir().join("install")
}

/// Builds everything that a user installs into [`install_dir`].
///
/// # Errors
/// When a part doesn't build.
pub fn product() -> Result<()> {
    let step = Step::begin("product", "5 s when little changed, 4 minutes from nothing");
    let mut arguments = vec!["build", "--release"];
    for package in ["kata-like-vmm", "kata-like-fs", "kata-like-shim", "kata-like-agent"] {
        arguments.extend(["-p", package]);
    }
    cargo_static(&arguments)?;
    let built = target_dir().join(TARGET).join("release");
    for (_, binary, folder) in PRODUCT.iter().filter(|(_, _, folder)| !folder.is_empty()) {
        install(&built.join(binary), &install_dir().join(folder).join(binary))?;
    }
    step.end();
    let share = install_dir().join("usr/share/kata-like");
    guest_image(&built.join("kata-like-agent"), &share.join("guest.img"))?;
    let kernel = guest_kernel()?;
    install(&kernel.join("vmlinux"), &share.join("vmlinux"))
}

fn guest_image(agent: &Path, image: &Path) -> Result<()> {
    std::fs::create_dir_all(image.parent().context("no folder")?)?;
    let status = cargo()
        .args(["run", "--quiet", "-p", "kata-like-rootfs-builder", "--target-dir"])
        .arg(target_dir())
        .args([OsStr::new("--"), OsStr::new("--agent"), agent.as_os_str()])
        .args([OsStr::new("--out"), image.as_os_str()])
        .status()?;
    succeeded("the guest image", status)
}

/// Builds the guest kernel, or finds it in the cache; answers its folder.
fn guest_kernel() -> Result<PathBuf> {
    let output = Command::new("bash")
        .arg(workspace().join("guest-kernel-config/build.sh"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("bash")?;
    succeeded("the guest kernel", output.status)?;
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("guest-kernel-config/build.sh named no folder")?;
    Ok(PathBuf::from(last))
}

/// Builds one of the lab's own programs, static, and answers its path.
///
/// # Errors
/// When it doesn't build.
pub fn lab_program(name: &str) -> Result<PathBuf> {
    cargo_static(&["build", "-p", "kata-like-tests", "--bin", name])?;
    Ok(target_dir().join(TARGET).join("debug").join(name))
}

/// Cargo for the checkout, whatever target folder or flags the caller's environment names.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    cargo
}

/// Runs cargo so that what it builds needs no library where it runs.
fn cargo_static(arguments: &[&str]) -> Result<()> {
    let status = cargo()
        .args(arguments)
        .args(["--quiet", "--target", TARGET, "--target-dir"])
        .arg(target_dir())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("cargo")?;
    succeeded(&format!("cargo {}", arguments.join(" ")), status)
}

fn succeeded(what: &str, status: std::process::ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

/// Copies a file unless the copy is already the same, so that times tell what changed.
fn install(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|had| had == bytes) {
        return Ok(());
    }
    std::fs::create_dir_all(to.parent().context("no folder")?)?;
    std::fs::copy(from, to).with_context(|| to.display().to_string())?;
    Ok(())
}
