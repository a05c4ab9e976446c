//! What was installed: programs, guest kernel, guest image, configuration.

use super::report::Finding;
use sandbox::settings::Settings;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The name that containerd makes of `io.containerd.kata-like.v2`.
const SHIM: &str = "containerd-shim-kata-like-v2";

/// Enough of a file to tell what it is.
const HEAD: usize = 0x206;

pub(super) fn configuration(path: &Path, settings: &Settings) -> Finding {
    let Settings { vcpus, memory_mib, .. } = settings;
    let source = if path.exists() {
        path.display().to_string()
    } else {
        format!("defaults (there is no {})", path.display())
    };
    Finding::ok("configuration", format!("{source}: {vcpus} vCPU, {memory_mib} MiB a machine"))
}

pub(super) fn bad_configuration(error: &sandbox::Error) -> Finding {
    let remedy = "correct the file; every value in it is optional";
    Finding::failed("configuration", error.chain(), remedy)
}

/// Everything that a machine is made of.
pub(super) fn installed(settings: &Settings) -> Vec<Finding> {
    vec![
        program("VMM", &settings.vmm),
        program("file server", &settings.file_server),
        program("stand-in", &settings.stand_in),
        file("guest kernel", &settings.kernel, is_kernel, "a kernel (ELF or bzImage)"),
        file("guest image", &settings.image, is_initramfs, "an initramfs (cpio, or packed)"),
        shim(),
    ]
}

fn shim() -> Finding {
    match super::program(SHIM) {
        Some(path) => program("shim", &path),
        None => Finding::warning(
            "shim",
            format!("{SHIM} is not in PATH"),
            "install it to /usr/bin: containerd looks for it there",
        ),
    }
}

fn program(what: &'static str, path: &Path) -> Finding {
    let remedy = "install it, or name it in the configuration under [paths]";
    match path.metadata() {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Finding::ok(what, path.display().to_string())
        }
        Ok(_) => Finding::failed(what, format!("{} is not a program", path.display()), remedy),
        Err(error) => Finding::failed(what, format!("{}: {error}", path.display()), remedy),
    }
}

fn file(what: &'static str, path: &Path, is_right: fn(&[u8]) -> bool, kind: &str) -> Finding {
    let remedy = "install it, or name it in the configuration under [machine]";
    let detail = |text: &str| format!("{}: {text}", path.display());
    match head(path) {
        Ok((head, _)) if !is_right(&head) => {
            Finding::failed(what, detail(&format!("not {kind}")), remedy)
        }
        Ok((_, len)) => Finding::ok(what, detail(&format!("{:.1} MiB", len as f64 / 1_048_576.0))),
        Err(error) => Finding::failed(what, detail(&error.to_string()), remedy),
    }
}

fn head(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head, len))
}

/// An ELF file, or one with the boot protocol's signature (Documentation/arch/x86/boot.rst).
fn is_kernel(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF") || head.get(0x202..0x206) == Some(b"HdrS")
}

/// What the kernel takes for an initramfs: "newc" cpio, or gzip, xz, zstd around it.
fn is_initramfs(head: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"070701", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magics.iter().any(|magic| head.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;
    use std::fs;

    #[test]
    fn files_are_known_by_their_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut bz_image = vec![0; 0x300];
        bz_image[0x202..0x206].copy_from_slice(b"HdrS");
        let kernel = |path: &Path| file("guest kernel", path, is_kernel, "a kernel").verdict();
        assert_eq!(kernel(&path), Verdict::Failed);
        for (content, verdict) in [
            (&b"\x7fELF..."[..], Verdict::Ok),
            (&bz_image, Verdict::Ok),
            (b"", Verdict::Failed),
            (b"#!/bin/sh", Verdict::Failed),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(kernel(&path), verdict);
        }
        assert!(is_initramfs(b"070701000"));
        assert!(!is_initramfs(b"\x7fELF"));
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_no_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "").unwrap();
        assert_eq!(program("VMM", &path).verdict(), Verdict::Failed);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program("VMM", &path).verdict(), Verdict::Ok);
        assert_eq!(program("VMM", directory.path()).verdict(), Verdict::Failed);
    }
}
