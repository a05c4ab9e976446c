//! Overlays of what the host shows, or of image layers on disks, and of a disk or memory that takes what is written.
//!
//! By the calls for mounts that take an option at a time: the paths of an image's layers are more than a page.

use nix::sys::stat::{Mode, SFlag, mknod};
use protocol::ports::ROOT_DISK;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::fs::{self, set_permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// Mounts one at an open directory. Of its options `lowerdir+=PATH` names a layer, the top one first; the directories that
/// are written to are made if they are not there.
///
/// # Errors
/// The kernel's, for an option with its name.
pub fn mount(options: &[String], point: &OwnedFd) -> io::Result<()> {
    make_layers(options)?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&overlay, "source", "overlay")?;
    for option in options {
        let set = match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(&overlay, name, value),
            None => fsconfig_set_flag(&overlay, option.as_str()),
        };
        set.map_err(|error| named(option, &error.into()))?;
    }
    fsconfig_create(&overlay)?;
    let mounted = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mounted, "", point, "", whole)?;
    Ok(())
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Makes the directories on a disk that has none as yet. The overlay's root is like that of the top layer below.
fn make_layers(options: &[String]) -> io::Result<()> {
    let path = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
    let (Some(lower), Some(upper), Some(work)) =
        (path("lowerdir+="), path("upperdir="), path("workdir="))
    else {
        return Ok(());
    };
    make_directory(Path::new(work)).map_err(|error| named(work, &error))?;
    let make = || {
        if make_directory(Path::new(upper))? {
            let root = fs::metadata(lower)?;
            if Path::new(lower).join(ROOT_DISK).symlink_metadata().is_ok() {
                hide(&Path::new(upper).join(ROOT_DISK))?;
            }
            chown(upper, Some(root.uid()), Some(root.gid()))?;
            set_permissions(upper, root.permissions())?;
        }
        Ok(())
    };
    make().map_err(|error| named(upper, &error))
}

/// Lets an overlay take what has this name below for removed.
fn hide(path: &Path) -> io::Result<()> {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).map_err(Into::into)
}

/// Whether it had to be made. Nothing else may be there: a link would lead out of the disk.
fn make_directory(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = fs::symlink_metadata(path)?.is_dir();
            if there { Ok(false) } else { Err(io::ErrorKind::NotADirectory.into()) }
        }
        made => made.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, MsFlags, umount2};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    fn options(dir: &Path, layers: usize) -> Vec<String> {
        let path = |name: &str| dir.join(name).display().to_string();
        let lower = (0..layers).map(|n| format!("lowerdir+={}", path(&format!("lower-{n}"))));
        let upper = format!("upperdir={}", path("upper"));
        lower.chain([upper, format!("workdir={}", path("work"))]).collect()
    }

    #[test]
    fn the_root_of_an_overlay_is_like_that_of_the_top_layer_below() {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower-0");
        fs::create_dir(&lower).unwrap();
        fs::set_permissions(&lower, fs::Permissions::from_mode(0o1751)).unwrap();
        let options = options(dir.path(), 2);
        make_layers(&options).unwrap();
        assert!(dir.path().join("work").is_dir());
        let upper = dir.path().join("upper");
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o1751);
        // A disk that was written to before is as it was left.
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
        make_layers(&options).unwrap();
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_is_no_directory_on_the_disk_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lower-0")).unwrap();
        symlink("lower-0", dir.path().join("upper")).unwrap();
        let error = make_layers(&options(dir.path(), 1)).unwrap_err().to_string();
        assert!(error.contains("/upper: "), "{error}");
    }

    /// Mounts in a namespace that is gone with the thread.
    #[test]
    fn more_layers_than_a_page_can_name_are_mounted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let seen = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let (none, private) = (None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
            nix::mount::mount(none, "/", none, private, none).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let tmpfs = Some("tmpfs");
            nix::mount::mount(tmpfs, dir.path(), tmpfs, MsFlags::empty(), none).unwrap();
            for n in 0..128 {
                let layer = dir.path().join(format!("lower-{n}"));
                fs::create_dir(&layer).unwrap();
                fs::write(layer.join("top"), n.to_string()).unwrap();
                fs::write(layer.join(n.to_string()), "").unwrap();
            }
            let at = |name: &str| -> PathBuf { dir.path().join(name) };
            fs::create_dir(at("root")).unwrap();
            let point = OwnedFd::from(fs::File::open(at("root")).unwrap());
            let options = options(dir.path(), 128);
            assert!(options.join(",").len() > 4096);
            mount(&options, &point).unwrap();
            let seen =
                (fs::read_dir(at("root")).unwrap().count(), fs::read(at("root/top")).unwrap());
            fs::write(at("root/new"), "").unwrap();
            assert!(at("upper/new").exists());
            drop(point);
            umount2(&at("root"), MntFlags::MNT_DETACH).unwrap();
            umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
            seen
        });
        assert_eq!(seen.join().unwrap(), (129, b"0".to_vec()));
    }

    #[test]
    fn an_option_that_the_kernel_does_not_know_is_named() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let point = OwnedFd::from(fs::File::open("/").unwrap());
        let error = mount(&["nosuch=1".to_owned()], &point).unwrap_err().to_string();
        assert!(error.contains("nosuch=1: "), "{error}");
    }
}
