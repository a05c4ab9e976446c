//! What is done in a container's mount namespace when libcontainer has made the container and its first process
//! waits to be let go: propagation, read-only mounts and paths, masked paths.

use crate::spec::place;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{FileStat, SFlag, makedev, stat};
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const NULL: &str = "/dev/null";

/// What is to be done when the container is there.
#[derive(Debug, Default)]
pub struct LateMounts {
    /// Working directory of the first process.
    pub(super) cwd: PathBuf,
    /// Mounts of the guest's that the container has bound.
    pub(super) made: Vec<PathBuf>,
    /// In this order.
    pub(super) propagation: Vec<(PathBuf, MsFlags)>,
    /// Mounts that had to be writable until everything in them was made.
    pub(super) remounts: Vec<PathBuf>,
    /// Paths that become read-only mounts.
    pub(super) read_only: Vec<PathBuf>,
    /// Paths that nothing is to be seen of.
    pub(super) masked: Vec<PathBuf>,
    /// The container's root user and group, as the guest numbers them.
    pub(super) owner: (u32, u32),
}

impl LateMounts {
    /// Lets go of what was made, and does the rest in the mount namespace of process `pid`, where the caller
    /// then is. Whether the path of the process's working directory may lead elsewhere now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn finish(&mut self, pid: i32) -> io::Result<bool> {
        self.unmount();
        let lists = [&self.remounts, &self.read_only, &self.masked];
        if self.propagation.is_empty() && lists.iter().all(|list| list.is_empty()) {
            return Ok(false);
        }
        let process = File::open(format!("/proc/{pid}"))?;
        setns(File::open(format!("/proc/{pid}/ns/mnt"))?, CloneFlags::CLONE_NEWNS)?;
        for (path, flags) in &self.propagation {
            mount(None::<&str>, path, None::<&str>, *flags, None::<&str>)?;
        }
        self.remounts.iter().try_for_each(|path| set_read_only(path))?;
        self.read_only.iter().try_for_each(|path| make_read_only(path))?;
        self.mask()?;
        let cwd = CString::new(self.cwd.as_os_str().as_bytes())?;
        let is = identity(process.as_fd(), c"cwd")?;
        // Some paths lead only the process there: those through /proc/self.
        Ok(identity(AT_FDCWD, &cwd).ok() != Some(is))
    }

    /// Hides files behind /dev/null and directories behind one empty, read-only tmpfs that they share.
    fn mask(&self) -> io::Result<()> {
        if self.masked.is_empty() {
            return Ok(());
        }
        let null = stat(NULL)?;
        if !is_of(&null, SFlag::S_IFCHR) || null.st_rdev != makedev(1, 3) {
            return Err(io::Error::other("the container's /dev/null is another file"));
        }
        let (mut empty, mut done) = (None, HashSet::new());
        for path in &self.masked {
            if !done.insert(place::normal(path)) {
                continue;
            }
            match stat(path) {
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
                Ok(status) if !is_of(&status, SFlag::S_IFDIR) => bind(Path::new(NULL), path)?,
                Ok(_) => match empty {
                    Some(empty) => bind(empty, path)?,
                    None => empty = Some(self.mount_empty(path)?),
                },
            }
        }
        Ok(())
    }

    /// Mounts a file system on `path` that holds nothing and takes nothing.
    fn mount_empty<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let (user, group) = self.owner;
        let options = format!("nr_blocks=1,nr_inodes=1,uid={user},gid={group}");
        let kind = Some("tmpfs");
        mount(kind, path, kind, MsFlags::MS_RDONLY, Some(options.as_str()))?;
        Ok(path)
    }

    /// Unmounts what was made; a container that has it bound keeps it.
    fn unmount(&mut self) {
        for path in self.made.drain(..) {
            let _ = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_dir(&path);
        }
    }
}

impl Drop for LateMounts {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn is_of(status: &FileStat, kind: SFlag) -> bool {
    status.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn bind(source: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// The mount, device and inode that a path leads to.
fn identity(directory: BorrowedFd<'_>, path: &CStr) -> io::Result<(u64, u32, u32, u64)> {
    let wanted = libc::STATX_MNT_ID | libc::STATX_INO;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL, and the kernel writes one structure.
    let result = unsafe {
        libc::statx(
            directory.as_raw_fd(),
            path.as_ptr(),
            libc::AT_NO_AUTOMOUNT,
            wanted,
            &raw mut found,
        )
    };
    Errno::result(result)?;
    Ok((found.stx_mnt_id, found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// A path that is not there is no error, as for runc.
fn make_read_only(path: &Path) -> io::Result<()> {
    match mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    }
    set_read_only(path)
}

/// Nothing of the mount's flags changes but this one.
fn set_read_only(path: &Path) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the kernel reads a path that ends with NUL and as many bytes as the structure has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            text.as_ptr(),
            0,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Ok(Errno::result(result).map(drop)?)
}
