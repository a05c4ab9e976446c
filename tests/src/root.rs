//! The lab's root: Debian trixie with containerd, a kernel and QEMU; and the disk made of it.

use crate::cache::{self, Step};
use crate::image;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PACKAGES: &str = include_str!("../lab/packages");
/// The Debian that the lab is.
pub const SUITE: &str = "trixie";

/// Raised when the recipe below changes in a way that its other inputs don't show.
const RECIPE: &[u8] = b"2";

/// A finished root: `root/`, `disk.img`, `vmlinuz`.
#[derive(Debug, Clone)]
pub struct Root {
    /// The folder that holds them.
    pub dir: PathBuf,
}

impl Root {
    /// The root in the cache, made if need be.
    ///
    /// # Errors
    /// When a tool is missing or a step fails.
    pub fn prepare() -> Result<Self> {
        let inputs = [PACKAGES.as_bytes(), SUITE.as_bytes(), image::RECIPE, RECIPE];
        let dir = cache::dir()?.join(format!("lab-{}", cache::key(&inputs)));
        cache::once(&dir, build)?;
        Ok(Self { dir })
    }

    /// The kernel's version, which names its folder of modules.
    ///
    /// # Errors
    /// When there is none.
    pub fn kernel_version(&self) -> Result<String> {
        kernel_version(&self.dir.join("root"))
    }
}

fn kernel_version(root: &Path) -> Result<String> {
    let entry = std::fs::read_dir(root.join("usr/lib/modules"))?
        .next()
        .context("the lab's root has no kernel")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn build(dir: &Path) -> Result<()> {
    let root = dir.join("root");
    debootstrap(&root)?;
    let step = Step::begin("lab: disk", "20 s");
    let version = kernel_version(&root)?;
    std::fs::copy(root.join(format!("boot/vmlinuz-{version}")), dir.join("vmlinuz"))?;
    unpack_modules(&root, &version)?;
    std::fs::create_dir_all(root.join("lab"))?;
    image::write_busybox(&root.join("usr/bin/busybox"), &root.join("lab/busybox.tar"))?;
    let disk = dir.join("disk.img");
    std::fs::File::create(&disk)?.set_len(8 << 30)?;
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"])
        .arg(&root)
        .arg(&disk))?;
    step.end();
    Ok(())
}

/// The packages of a list with one a line and comments, as `mmdebstrap --include` wants them.
pub fn packages(list: &str) -> String {
    let names = list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    names.collect::<Vec<_>>().join(",")
}

fn debootstrap(root: &Path) -> Result<()> {
    let step = Step::begin("lab: Debian root", "40 to 70 s");
    run(mmdebstrap()
        .arg(format!("--include={}", packages(PACKAGES)))
        .arg(SUITE)
        .arg(root)
        .arg(mirror()?))?;
    step.end();
    Ok(())
}

/// `mmdebstrap` as root, for little more than what is named.
pub fn mmdebstrap() -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--mode=root"])
        .arg("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg")
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/boot/initrd*");
    command
}

/// The Debian mirror of this machine's own apt configuration.
///
/// # Errors
/// When none is configured.
pub fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    let text: String = files.iter().flat_map(std::fs::read_to_string).collect();
    find_mirror(&text).context(
        "no Debian mirror found: name one in /etc/apt/sources.list, as in `deb URL/debian trixie main`",
    )
}

/// The first address in apt's sources that serves the main Debian archive.
fn find_mirror(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// Unpacks the kernel's modules: xz is slow under emulation.
fn unpack_modules(root: &Path, version: &str) -> Result<()> {
    let modules = root.join("usr/lib/modules").join(version);
    run(Command::new("sh")
        .args(["-c", "find . -name '*.ko.xz' -print0 | xargs -0 -P2 -n40 xz -d"])
        .current_dir(&modules))?;
    run(Command::new("chroot").arg(root).args(["depmod", version]))
}

/// Runs a command to its end; its output is shown only when it fails.
///
/// # Errors
/// When it can't be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} is missing: `bash xtask/setup.sh` installs it"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{program} failed ({}):\n{}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms_of_sources() {
        let classic =
            "# deb http://no/debian x\ndeb [signed-by=/k] http://m.test/debian bookworm main\n";
        assert_eq!(find_mirror(classic).as_deref(), Some("http://m.test/debian"));
        let deb822 = "Types: deb\nURIs: http://s.test/debian-security http://m.test/debian/\n";
        assert_eq!(find_mirror(deb822).as_deref(), Some("http://m.test/debian/"));
        assert_eq!(find_mirror("deb http://m.test/ubuntu noble main"), None);
    }
}
