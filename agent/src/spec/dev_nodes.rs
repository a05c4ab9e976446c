//! Makes way for the device nodes and links that libcontainer makes in a container's /dev: its own, and those that
//! the specification names.
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
    let named = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let named =
        named.into_iter().flatten().filter_map(|device| device.path().strip_prefix("/dev").ok());
    let named = named.filter(|name| name.components().count() == 1);
    for name in MADE.iter().map(Path::new).chain(named) {
        let Ok(status) = fstatat(&dev, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        if [SFlag::S_IFCHR, SFlag::S_IFBLK, SFlag::S_IFIFO, SFlag::S_IFLNK].contains(&kind) {
            unlinkat(&dev, name, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;
    use oci_spec::runtime::{LinuxDevice, MountBuilder, SpecBuilder};
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
        let devices = serde_json::json!([{"path": "/dev/mine", "type": "p", "major": 0, "minor": 0},
            {"path": "/dev/below/it", "type": "p", "major": 0, "minor": 0}]);
        let devices: Vec<LinuxDevice> = serde_json::from_value(devices).unwrap();
        std::fs::create_dir(dev.join("below")).unwrap();
        for fifo in ["mine", "other", "below/it"] {
            mkfifo(&dev.join(fifo), Mode::S_IRUSR).unwrap();
        }
        let mut linux = spec.linux().clone().unwrap();
        linux.set_devices(Some(devices));
        spec.set_linux(Some(linux));
        make_way(&spec, &root).unwrap();
        assert!(!dev.join("fd").is_symlink());
        assert!(!dev.join("mine").exists());
        assert!(dev.join("other").exists() && dev.join("below/it").exists());
        assert!(dev.join("null").is_file());
        std::fs::rename(&dev, root.join("elsewhere")).unwrap();
        symlink("elsewhere", &dev).unwrap();
        symlink("/proc/self/fd", root.join("elsewhere/fd")).unwrap();
        make_way(&spec, &root).unwrap();
        assert!(root.join("elsewhere/fd").is_symlink());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
