//! Makes way for the device nodes and links that libcontainer makes in a container's /dev.
//!
//! It fails where one is already: in a root file system that was used before without a mount on /dev. runc
//! takes what is there; here it is removed and made anew.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use oci_spec::runtime::Spec;
use std::path::Path;

/// What libcontainer makes, but for `ptmx`, which it replaces.
const MADE: [&str; 12] = [
    "core", "fd", "full", "kcore", "null", "random", "stderr", "stdin", "stdout", "tty", "urandom",
    "zero",
];

/// Removes device nodes and symbolic links of those names, unless something is mounted on /dev.
///
/// # Errors
/// One cannot be removed, as on a read-only file system.
pub fn make_way(spec: &Spec, rootfs: &Path) -> Result<(), Errno> {
    let mounted =
        spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/dev"));
    if mounted {
        return Ok(());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // No directory, or an image that would lead elsewhere: nothing there is libcontainer's.
    let Ok(dev) = openat(AT_FDCWD, &rootfs.join("dev"), flags, Mode::empty()) else {
        return Ok(());
    };
    for name in MADE {
        let Ok(status) = fstatat(&dev, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFCHR || kind == SFlag::S_IFLNK {
            unlinkat(&dev, name, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{MountBuilder, SpecBuilder};
    use std::os::unix::fs::symlink;

    #[test]
    fn links_go_and_files_and_what_is_elsewhere_stay() {
        let root = std::env::temp_dir().join(format!("dev-{}", std::process::id()));
        let dev = root.join("dev");
        std::fs::create_dir_all(&dev).unwrap();
        symlink("/proc/self/fd", dev.join("fd")).unwrap();
        std::fs::write(dev.join("null"), "a file of the image's").unwrap();
        let mounted = MountBuilder::default().destination("/dev").build().unwrap();
        let mut spec = SpecBuilder::default().mounts(vec![mounted]).build().unwrap();
        make_way(&spec, &root).unwrap();
        assert!(dev.join("fd").is_symlink());
        spec.set_mounts(None);
        make_way(&spec, &root).unwrap();
        assert!(!dev.join("fd").is_symlink());
        assert!(dev.join("null").is_file());
        std::fs::rename(&dev, root.join("elsewhere")).unwrap();
        symlink("elsewhere", &dev).unwrap();
        symlink("/proc/self/fd", root.join("elsewhere/fd")).unwrap();
        make_way(&spec, &root).unwrap();
        assert!(root.join("elsewhere/fd").is_symlink());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
