//! A bind mount of the host's, with what is asked of it: read-only, also all the way down, other owners; and without
//! devices, whatever is asked: who gets hold of the file server shall not open one.

use crate::error::{Error, Result};
use crate::oci::plan::{AccessTimes, Bind, Follows, Owners};
use libc::mount_attr;
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What every mount that the file server sees is without.
const INERT: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;

/// Mounts `bind` on `target`.
///
/// # Errors
/// The system's answer, naming the source.
pub fn mount(bind: &Bind, target: &Path) -> Result<()> {
    let mount = || {
        let tree = Tree::copy(&bind.source, bind.recursive)?;
        if bind.read_only {
            tree.set(libc::MOUNT_ATTR_RDONLY, 0, bind.recursive && bind.read_only_below)?;
        } else if bind.writable {
            tree.set(0, libc::MOUNT_ATTR_RDONLY, false)?;
        }
        if let Some(owners) = &bind.owners {
            tree.map(owners, bind.recursive)?;
        }
        for (times, recursive) in [(bind.times, false), (bind.times_below, bind.recursive)] {
            if times != AccessTimes::default() {
                tree.set(times.set, times.clear, recursive)?;
            }
        }
        match bind.follows {
            Follows::All => {}
            Follows::Below => tree.no_longer_follow(false)?,
            Follows::Nothing => tree.no_longer_follow(bind.recursive)?,
        }
        tree.attach(target)
    };
    mount().map_err(Error::path("bind mount", &bind.source))
}

/// Mounts a directory on `target`, with what is below it if `flags` say so; its other flags are of the top alone.
///
/// # Errors
/// The system's answer, naming the source.
pub fn mount_root(source: &Path, target: &Path, flags: MsFlags) -> Result<()> {
    let mount = || {
        let tree = Tree::copy(source, flags.contains(MsFlags::MS_REC))?;
        let (set, clear) = attributes(flags);
        tree.set(set, clear, false)?;
        tree.attach(target)
    };
    mount().map_err(Error::path("bind mount", source))
}

/// The flags of a mount that it has for itself, as attributes to set and to clear.
fn attributes(flags: MsFlags) -> (u64, u64) {
    let all = [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    ];
    let set = all.iter().filter(|(flag, _)| flags.contains(*flag));
    let times = MsFlags::MS_NOATIME | MsFlags::MS_STRICTATIME | MsFlags::MS_RELATIME;
    // The three ways to keep times of access are one attribute, of which relatime is the zero.
    let clear = if flags.intersects(times) { libc::MOUNT_ATTR__ATIME } else { 0 };
    (set.map(|(_, attribute)| attribute).sum(), clear)
}

/// A copy of a mount, which is changed before anybody can see it: what it is when it is attached holds in the file
/// server's namespace too, and owners can be set only then.
struct Tree {
    mount: OwnedFd,
}

impl Tree {
    fn copy(source: &Path, recursive: bool) -> io::Result<Self> {
        let source = c_path(source)?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | all(recursive);
        // SAFETY: the kernel reads a path that ends with NUL.
        let tree =
            unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
        // SAFETY: the kernel has just opened it for us.
        let tree = Self { mount: unsafe { OwnedFd::from_raw_fd(checked(tree)? as RawFd) } };
        tree.set(INERT, 0, recursive)?;
        Ok(tree)
    }

    fn set(&self, attributes: u64, clear: u64, recursive: bool) -> io::Result<()> {
        let change =
            mount_attr { attr_set: attributes, attr_clr: clear, propagation: 0, userns_fd: 0 };
        set_attributes(self.mount.as_raw_fd(), c"", all(recursive), change)
    }

    /// What is mounted later on what it is a copy of is not seen in it. The file server's own copy goes on to follow it.
    fn no_longer_follow(&self, recursive: bool) -> io::Result<()> {
        let change =
            mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
        set_attributes(self.mount.as_raw_fd(), c"", all(recursive), change)
    }

    fn map(&self, owners: &Owners, recursive: bool) -> io::Result<()> {
        let namespace = namespace(owners)?;
        let change = mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: namespace.as_raw_fd() as u64,
        };
        let flags = all(owners.recursive && recursive);
        set_attributes(self.mount.as_raw_fd(), c"", flags, change)
    }

    fn attach(self, target: &Path) -> io::Result<()> {
        let target = c_path(target)?;
        // SAFETY: the kernel reads paths that end with NUL.
        checked(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        })
        .map(drop)
    }
}

fn all(recursive: bool) -> u32 {
    if recursive { libc::AT_RECURSIVE as u32 } else { 0 }
}

/// Changes the mount at `path`, which is itself no link, or the one that `directory` is where there is no path.
pub(super) fn set_attributes(
    directory: RawFd,
    path: &CStr,
    flags: u32,
    change: mount_attr,
) -> io::Result<()> {
    let flags = flags | (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) as u32;
    // SAFETY: the kernel reads a path that ends with NUL and as many bytes as the structure has.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<mount_attr>(),
        )
    })
    .map(drop)
}

/// A user namespace that says whose the files are; it lives as long as its descriptor, or the mount.
fn namespace(owners: &Owners) -> io::Result<File> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: as fork; the child makes system calls only.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    if pid == 0 {
        loop {
            // SAFETY: touches no memory; its maker's thread waits for it, and takes it along.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        }
    }
    let made =
        write_mappings(pid, owners).and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    let child = Pid::from_raw(pid as i32);
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    made
}

fn write_mappings(pid: i64, owners: &Owners) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/uid_map"), mappings(&owners.users))?;
    fs::write(format!("/proc/{pid}/gid_map"), mappings(&owners.groups))
}

fn mappings(mappings: &[LinuxIdMapping]) -> String {
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    mappings.iter().map(line).collect()
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
