//! Builds the product: static binaries, guest image, guest kernel; and collects them as they are installed.

use ::lab::cache::Step;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Held by who has cargo build or test: see [`turn`].
static TURN: Mutex<()> = Mutex::new(());

/// As `.cargo/config.toml` has it.
const STATIC: &str = "-C target-feature=+crt-static";

/// Packages of the product, their binaries, and the folder each is installed in.
const PRODUCT: [(&str, &str, &str); 6] = [
    ("kata-like-vmm", "kata-like-vmm", "usr/libexec/kata-like"),
    ("kata-like-fs", "kata-like-fs", "usr/libexec/kata-like"),
    ("kata-like-shim", "containerd-shim-kata-like-v2", "usr/bin"),
    ("kata-like-shim", "kata-like", "usr/bin"),
    ("kata-like-shim", "kata-like-stand-in", "usr/libexec/kata-like"),
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
    std::thread::scope(|scope| {
        let kernel = scope.spawn(guest_kernel);
        let programs = programs();
        // Told at once: the other part may go on for minutes.
        if let Err(error) = &programs {
            eprintln!("error: {error:#}; what is built beside it is finished first");
        }
        let kernel = joined(kernel);
        programs?;
        install_guest(&kernel?)
    })
}

/// What a thread that builds something answers.
pub fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn built(program: &str) -> PathBuf {
    target_dir().join(TARGET).join("release").join(program)
}

/// Builds and installs the programs, and samples of their configuration.
///
/// # Errors
/// When one doesn't build.
pub fn programs() -> Result<()> {
    let _turn = turn();
    let step = Step::begin("product", "5 s when little changed, from nothing 4 minutes");
    let mut arguments = vec!["build", "--release"];
    for package in ["kata-like-vmm", "kata-like-fs", "kata-like-shim", "kata-like-agent"] {
        arguments.extend(["-p", package]);
    }
    cargo_static(&arguments, &step)?;
    let share = install_dir().join("usr/share/kata-like");
    for (folder, sample) in [("shim", "config.sample.toml"), ("deploy", "erofs.toml")] {
        install(&workspace().join(folder).join(sample), &share.join(sample))?;
    }
    for (_, binary, folder) in PRODUCT.iter().filter(|(_, _, folder)| !folder.is_empty()) {
        install(&built(binary), &install_dir().join(folder).join(binary))?;
    }
    step.end();
    Ok(())
}

/// Makes and installs the guest image of the agent that was built, and installs the guest kernel of this folder.
///
/// # Errors
/// When a file can't be read or written.
pub fn install_guest(kernel: &Path) -> Result<()> {
    let share = install_dir().join("usr/share/kata-like");
    std::fs::create_dir_all(&share)?;
    kata_like_rootfs_builder::image::build(&built("kata-like-agent"), &share.join("guest.img"))?;
    check_system_calls(kernel)?;
    install(&kernel.join("vmlinux"), &share.join("vmlinux"))
}

/// Builds the guest kernel, or finds it in the cache; answers its folder.
///
/// # Errors
/// When it doesn't build; the message says what to do.
pub fn guest_kernel() -> Result<PathBuf> {
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

/// The agent's lists of system calls, by which it compiles seccomp profiles, are the kernel's.
fn check_system_calls(kernel: &Path) -> Result<()> {
    let kernels = std::fs::read_to_string(kernel.join("syscalls")).context("the kernel's calls")?;
    for kind in ["x86_64", "i386"] {
        let path = workspace().join(format!("agent/src/spec/seccomp/{kind}.txt"));
        let ours = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let prefix = format!("{kind} ");
        let theirs = kernels.lines().filter_map(|line| line.strip_prefix(&prefix));
        let (ours, theirs): (BTreeSet<&str>, BTreeSet<&str>) =
            (ours.lines().collect(), theirs.collect());
        let differ: Vec<&&str> = ours.symmetric_difference(&theirs).collect();
        ensure!(
            differ.is_empty(),
            "{} and the guest's kernel differ in {differ:?}",
            path.display()
        );
    }
    Ok(())
}

/// Builds one of the lab's own programs, static, and answers its path.
///
/// # Errors
/// When it doesn't build.
pub fn lab_program(name: &str) -> Result<PathBuf> {
    // As one of the whole workspace it shares what the unit tests are built of.
    of_the_lab(&[name], &["--workspace"])?;
    Ok(of_the_lab_at(name))
}

/// Builds the lab's agent, and the end-to-end tests beside it; answers the agent's path.
///
/// # Errors
/// When one doesn't build.
pub fn lab_agent_and_tests() -> Result<PathBuf> {
    of_the_lab(&["lab-agent", "e2e"], &["--workspace"])?;
    Ok(of_the_lab_at("lab-agent"))
}

/// Builds the lab's agent without what only tests need, where nothing is tested; answers its path.
///
/// # Errors
/// When it doesn't build.
pub fn lab_agent_alone() -> Result<PathBuf> {
    of_the_lab(&["lab-agent"], &["-p", "kata-like-tests", "--no-default-features"])?;
    Ok(of_the_lab_at("lab-agent"))
}

fn of_the_lab(names: &[&str], packages: &[&str]) -> Result<()> {
    let _turn = turn();
    let step = Step::begin_quick("the lab's programs");
    let bins = names.iter().flat_map(|name| ["--bin", name]);
    let arguments: Vec<&str> = ["build"].into_iter().chain(bins).collect();
    cargo_static(&[&arguments[..], packages].concat(), &step)?;
    step.end();
    Ok(())
}

fn of_the_lab_at(name: &str) -> PathBuf {
    target_dir().join(TARGET).join("debug").join(name)
}

/// The right to run one cargo that has work for every core: each step is then told when it begins to work and not
/// before, and what it leaves idle the kernel gets, which is compiled at a lower priority.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cargo for the checkout, whatever target folder or flags the caller's environment names.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    for own in ["CARGO_BUILD_TARGET", "CARGO_BUILD_TARGET_DIR", "CARGO_TARGET_DIR"] {
        cargo.env_remove(own);
    }
    // In place of any that a configuration of the caller's names.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", STATIC);
    cargo
}

/// Runs cargo, which `.cargo/config.toml` has build what needs no library where it runs; the step tells how far it is.
fn cargo_static(arguments: &[&str], step: &Step) -> Result<()> {
    let mut child = cargo()
        .args(arguments)
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo")?;
    let said = child.stderr.take().context("cargo's messages")?;
    let (mut compiled, mut fetched) = (0_u32, 0_u32);
    for line in BufReader::new(said).lines() {
        let line = line?;
        match line.split_whitespace().next() {
            Some("Compiling") => compiled += 1,
            Some("Downloaded") => fetched += 1,
            Some("Finished" | "Downloading" | "Updating" | "Locking") => {}
            _ => eprintln!("{line}"),
        }
        step.is_at(format_args!("{fetched} crates downloaded, {compiled} compiled"));
    }
    succeeded(&format!("cargo {}", arguments.join(" ")), child.wait()?)
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
