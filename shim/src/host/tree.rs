//! Directories that may have mounts below them, and how they go.

use nix::mount::{MntFlags, umount2};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Unmounts whatever is mounted below `dir`, last mounted first; what fails is logged.
pub fn unmount_below(dir: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    for target in mount_points_below(&mounts, dir).iter().rev() {
        if let Err(error) = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            tracing::warn!("unmount {}: {error}", target.display());
        }
    }
}

/// Removes `dir` with what is in it, but never through a mount: what is mounted there is somebody's.
///
/// # Errors
/// Something is mounted below it, or the system's answer; that it isn't there is none.
pub fn remove(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mount) = mount_points_below(&mounts, dir).first() {
        let text = format!("{} is still mounted", mount.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The mount points below `dir` in the text of a mountinfo file, in its order.
fn mount_points_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// mountinfo writes blanks and backslashes as `\ooo`.
fn unescape(field: &str) -> String {
    let mut out = field.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_below_the_directory_only() {
        let text = "1 0 8:1 / / rw - ext4 a rw\n\
                    2 1 8:1 / /run/x/shared rw shared:1 - ext4 a rw\n\
                    3 1 8:1 / /run/x/shared/a\\040b rw - ext4 a rw\n\
                    4 1 8:1 / /run/xy rw - ext4 a rw\n";
        let found = mount_points_below(text, Path::new("/run/x"));
        assert_eq!(found, [Path::new("/run/x/shared"), Path::new("/run/x/shared/a b")]);
    }
}
