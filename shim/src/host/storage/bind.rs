//! A bind mount of the host's, with what is asked of it: read-only all the way down, other owners.

use crate::error::{Error, Result};
use crate::oci::plan::{Bind, Owners};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Mounts `bind` on `target`.
///
/// # Errors
/// The system's answer, naming the source.
pub fn mount(bind: &Bind, target: &Path) -> Result<()> {
    attach(bind, target).map_err(Error::path("bind mount", &bind.source))
}

/// A copy of the mount is changed before anybody can see it: owners can be set only then.
fn attach(bind: &Bind, target: &Path) -> io::Result<()> {
    let (source, target) = (c_path(&bind.source)?, c_path(target)?);
    let all = |recursive: bool| if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | all(bind.recursive);
    // SAFETY: the kernel reads a path that ends with NUL.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
    // SAFETY: the kernel has just opened it for us.
    let tree = unsafe { OwnedFd::from_raw_fd(checked(tree)? as RawFd) };
    if bind.read_only {
        set(&tree, libc::MOUNT_ATTR_RDONLY, 0, all(bind.recursive))?;
    }
    if let Some(owners) = &bind.owners {
        let namespace = namespace(owners)?;
        let fd = namespace.as_raw_fd() as u64;
        set(&tree, libc::MOUNT_ATTR_IDMAP, fd, all(owners.recursive && bind.recursive))?;
    }
    let empty = c"".as_ptr();
    // SAFETY: the kernel reads paths that end with NUL.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            empty,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

fn set(tree: &OwnedFd, attribute: u64, namespace: u64, flags: u32) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: attribute, attr_clr: 0, propagation: 0, userns_fd: namespace };
    let flags = flags | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the kernel reads an empty path and as many bytes as the structure has.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
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

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
