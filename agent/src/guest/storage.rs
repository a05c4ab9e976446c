//! File systems that the host asks to be mounted in the guest.
//!
//! The host is trusted, but what it shares is written by containers: a mount point is created and
//! found below the agent's directory without following a link, and mounted by its descriptor.

use crate::error::AgentError;
use crate::guest::disks::Disks;
use crate::guest::trim::Trimmed;
use crate::guest::{erofs, overlay};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use protocol::agent::{Disk, Storage};
use protocol::ports::{LAYERS_DIR, SHARED_DIR};
use std::fs::{self, Permissions, set_permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Mount points are below this.
const BASE: &str = "/run/kata-like";

/// Most storages of one container: twice as many as an image has layers.
pub const MAX_STORAGES: usize = 256;

/// A mount option for the agent, see [`crate::guest::trim`]: as in fstab, what begins so is not for the kernel.
const TRIM: &str = "x-trim";

/// Mount options that are flags of mount(2); any other goes to the file system.
const FLAGS: &[(&str, MsFlags)] = &[
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("bind", MsFlags::MS_BIND),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("rw", MsFlags::empty()),
    ("defaults", MsFlags::empty()),
];

/// What the agent has mounted, and the disks that it took for it; given back by [`Storages::undo`].
#[derive(Debug, Default)]
pub struct Storages {
    disks: Disks,
    points: Vec<PathBuf>,
    trimmed: Vec<Trimmed>,
}

impl Storages {
    /// Takes a container's disks and mounts one storage after the other. Blocks as long as the file systems do.
    ///
    /// # Errors
    /// The first that fails; what was mounted before is unmounted.
    pub fn make(id: &str, disks: &[Disk], storages: &[Storage]) -> Result<Self, AgentError> {
        if storages.len() > MAX_STORAGES {
            return Err(AgentError::TooMany("storages"));
        }
        let mut done = Self { disks: Disks::attach(id, disks)?, ..Self::default() };
        for storage in storages {
            let mounted = if storage.of_sandbox {
                of_sandbox(storage).map(|()| None)
            } else {
                mount_one(storage).map(Some)
            };
            match mounted {
                Ok(path) => {
                    let trim = storage.options.iter().any(|option| option == TRIM);
                    for path in path.iter().filter(|_| trim) {
                        // If not, the host has it back in the end.
                        done.trimmed.extend(Trimmed::begin(path));
                    }
                    done.points.extend(path);
                }
                Err(error) => {
                    done.undo();
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// The disks that are there for them.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Unmounts all, the last one first, and lets go of the disks. Blocks.
    pub fn undo(&mut self) {
        for trimmed in self.trimmed.drain(..) {
            trimmed.end();
        }
        while let Some(path) = self.points.pop() {
            // Detached: a process that cannot die must not keep the rest from being cleaned up.
            if let Err(error) = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::warn!(%error, path = %path.display(), "unmounting");
            }
            if fs::remove_dir(&path).is_err() {
                let _ = fs::remove_file(&path);
            }
        }
        self.disks.detach();
    }
}

/// Unmounts what the kernel has mounted by itself below a container's part of the shared directory, or of its layers: of a
/// file system of the host's that is looked into, a mount of its own, which nobody would take away before the guest's end.
/// Blocks.
pub fn let_go_of_shared(id: &str) {
    let below = [SHARED_DIR, LAYERS_DIR].map(|dir| format!("{dir}/{id}/"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The last ones first: they may be on others.
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if below.iter().any(|below| point.starts_with(below))
            && let Err(error) = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        {
            tracing::warn!(%error, point, "unmounting");
        }
    }
}

/// Mounts what is the sandbox's, unless an earlier container of it had it mounted.
fn of_sandbox(storage: &Storage) -> Result<(), AgentError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if is_mounted(&storage.mount_point) {
        return Ok(());
    }
    mount_one(storage).map(drop)
}

/// Whether something is.
pub fn is_mounted(path: &str) -> bool {
    std::fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.lines().any(|line| line.split(' ').nth(1) == Some(path)))
}

/// Mounts a virtio-fs tag or anything else that needs no options.
///
/// # Errors
/// See [`Storages::make`].
pub fn mount_one(storage: &Storage) -> Result<PathBuf, AgentError> {
    let path = PathBuf::from(&storage.mount_point);
    let (flags, mut data) = options(&storage.options);
    // In memory that containers share: one may have put a link in its place.
    let is_bind = flags.contains(MsFlags::MS_BIND) && Path::new(&storage.source).starts_with(BASE);
    let bound = is_bind
        .then(|| source_of_bind(Path::new(&storage.source), &std::mem::take(&mut data)))
        .transpose()?;
    let point = match &bound {
        Some(bound) if is_file(bound) => file(&path)?,
        _ => directory(&path)?.0,
    };
    let failed = |error| {
        let what =
            format!("mounting {:?} ({}) on {}", storage.source, storage.fstype, path.display());
        AgentError::io(what, error)
    };
    match &*storage.fstype {
        "overlay" => {
            return overlay::mount(&storage.options, &point).map_err(failed).map(|()| path);
        }
        "erofs" => erofs::check(Path::new(&storage.source)).map_err(failed)?,
        _ => {}
    }
    let source = bound.as_ref().map_or_else(|| storage.source.clone(), of_descriptor);
    let target = of_descriptor(&point);
    let fstype = Some(storage.fstype.as_str());
    mount(Some(source.as_str()), target.as_str(), fstype, flags, Some(data.as_str()))
        .map_err(|error| failed(error.into()))?;
    // A bind is made with the flags of what is bound.
    let more = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if flags.contains(MsFlags::MS_BIND) && !more.is_empty() {
        let flags = more | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        if let Err(error) = mount(None::<&str>, &path, None::<&str>, flags, None::<&str>) {
            let _ = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            return Err(failed(error.into()));
        }
    }
    Ok(path)
}

fn options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= *flag,
            None if option == TRIM => {}
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// A path of what is open.
fn of_descriptor(open: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", open.as_raw_fd())
}

/// Opens what is to be bound: a file that is there, or a directory; where that is made it gets the permissions and the
/// owner that the options tell.
fn source_of_bind(path: &Path, options: &str) -> Result<OwnedFd, AgentError> {
    if let (Some(above), Some(name)) = (path.parent(), path.file_name()) {
        let found = open(&directory(above)?.0, name, OFlag::O_NOFOLLOW);
        if let Some(file) = found.ok().filter(is_file) {
            return Ok(file);
        }
    }
    let (source, is_new) = directory(path)?;
    let number = |name: &str, radix| {
        let value = options.split(',').find_map(|option| option.strip_prefix(name));
        value.and_then(|value| u32::from_str_radix(value, radix).ok())
    };
    let set = |made: String| {
        chown(&made, number("uid=", 10), number("gid=", 10))?;
        let mode = number("mode=", 8).unwrap_or(0o755);
        set_permissions(&made, Permissions::from_mode(mode & 0o7777))
    };
    if is_new {
        let what = || format!("making the directory {}", path.display());
        set(of_descriptor(&source)).map_err(|error| AgentError::io(what(), error))?;
    }
    Ok(source)
}

/// Creates what is missing of `path` and opens its end; gives whether that was made.
fn directory(path: &Path) -> Result<(OwnedFd, bool), AgentError> {
    let refused = || {
        AgentError::Invalid(format!(
            "directory {} is not a plain path below {BASE}",
            path.display()
        ))
    };
    let below = path.strip_prefix(BASE).map_err(|_| refused())?;
    let names: Option<Vec<_>> = below
        .components()
        .map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let names = names.filter(|names| !names.is_empty()).ok_or_else(refused)?;
    let io = |error| AgentError::io(format!("creating the directory {}", path.display()), error);
    let mut is_new = false;
    let mut here = open_directory(nix::fcntl::AT_FDCWD, BASE).map_err(io)?;
    for name in names {
        match mkdirat(&here, name, Mode::from_bits_retain(0o755)) {
            Ok(()) => is_new = true,
            Err(Errno::EEXIST) => is_new = false,
            Err(error) => return Err(io(error)),
        }
        here = open_directory(&here, name).map_err(io)?;
    }
    Ok((here, is_new))
}

/// Creates a file for something to be mounted on, if it is missing, and opens it.
fn file(path: &Path) -> Result<OwnedFd, AgentError> {
    let io = |error: Errno| AgentError::io(format!("creating the file {}", path.display()), error);
    let above = directory(path.parent().unwrap_or(path))?.0;
    let name = path.file_name().unwrap_or_default();
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match openat(&above, name, flags, Mode::from_bits_retain(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(io(error)),
    }
    open(&above, name, OFlag::O_NOFOLLOW).map_err(io)
}

fn is_file(open: &OwnedFd) -> bool {
    fstat(open).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits())
}

fn open_directory(at: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    open(at, name, OFlag::O_DIRECTORY)
}

fn open(at: impl AsFd, name: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, name.as_ref(), how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_the_file_systems_own_options() {
        let list = ["ro", "lowerdir=/a:/b", "nodev", "xino=off"].map(String::from);
        let (flags, data) = options(&list);
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        assert_eq!(data, "lowerdir=/a:/b,xino=off");
    }

    #[test]
    fn mount_points_elsewhere_are_refused() {
        for bad in ["/", "/etc", BASE, "relative", "/run/kata-like/../../etc", ""] {
            assert!(matches!(directory(Path::new(bad)), Err(AgentError::Invalid(_))), "{bad}");
        }
    }
}
