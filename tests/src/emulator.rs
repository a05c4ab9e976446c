//! The QEMU that emulates the lab: Debian's as it is, or with the changes that `lab/build-qemu` makes and tells of.

use crate::cache::{self, Step};
use crate::root::{self, Root, SUITE, run};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

const BUILD: &str = include_str!("../lab/build-qemu");

/// What building takes, in Debian.
const PACKAGES: &str = "gcc,libc6-dev,dpkg-dev,meson,ninja-build,pkgconf,python3-venv,flex,bison,\
                        libglib2.0-dev,libslirp-dev,libfdt-dev";

/// Which QEMU; what one has frozen the other can't resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulator {
    /// Debian's, which is in the lab's root. One thread emulates the lab's only CPU: with more, nested SVM has races.
    Debians,
    /// Changed so that a thread emulates each of two CPUs, and long runs under load are dependable.
    Changed,
}

impl Emulator {
    /// What the state that it freezes depends on.
    pub fn key(self) -> &'static [u8] {
        match self {
            Self::Debians => b"Debian's",
            Self::Changed => BUILD.as_bytes(),
        }
    }

    /// Its argument of `-accel`, and how many CPUs the lab has.
    pub fn accelerator(self) -> (&'static str, &'static str) {
        match self {
            Self::Debians => ("tcg,thread=single", "1"),
            Self::Changed => ("tcg,thread=multi", "2"),
        }
    }

    /// QEMU, to be given its machine; with the loader, libraries and firmware of the lab's root, so that there is
    /// nothing to install on the host. The changed one is built if need be.
    ///
    /// # Errors
    /// When building takes what is missing, or Debian's QEMU has changed under what is to be changed.
    pub fn command(self, root: &Root) -> Result<Command> {
        let root = root.dir.join("root");
        let lib = root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&lib).arg(match self {
            Self::Debians => root.join("usr/bin/qemu-system-x86_64"),
            Self::Changed => changed()?,
        });
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        command.env("QEMU_MODULE_DIR", lib.join("qemu"));
        Ok(command)
    }
}

/// The changed QEMU; it runs with the libraries of the lab's root.
fn changed() -> Result<PathBuf> {
    let key = cache::key(&[BUILD.as_bytes(), PACKAGES.as_bytes(), SUITE.as_bytes()]);
    let dir = cache::dir()?.join(format!("qemu-{key}"));
    cache::once(&dir, |part| {
        let step = Step::begin("lab: QEMU", "5 minutes");
        let script = part.join("build");
        std::fs::write(&script, BUILD)?;
        let mirror = root::mirror()?;
        // The Debian in which it is built is gone when it is.
        run(root::mmdebstrap()
            .arg("--format=null")
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--customize-hook=copy-in {} /root", script.display()))
            .arg("--customize-hook=chroot \"$1\" sh /root/build")
            .arg(format!("--customize-hook=copy-out /qemu-system-x86_64 {}", part.display()))
            .args([SUITE, "/dev/null"])
            .args([
                format!("deb {mirror} {SUITE} main"),
                format!("deb-src {mirror} {SUITE} main"),
            ]))?;
        step.end();
        Ok(())
    })?;
    Ok(dir.join("qemu-system-x86_64"))
}
