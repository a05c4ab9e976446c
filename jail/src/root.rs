//! What a confined process sees as `/`.

use crate::error::{JailError, Step, StepResult};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_change,
    move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// What a confined process sees as `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The file system as it is, in the caller's mount namespace.
    Unchanged,
    /// An empty directory that nobody can write to.
    Empty,
    /// A directory of the host and the mounts beneath it, and nothing else. Nothing that is there can be executed,
    /// or opened as a device.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whether what the host mounts beneath the directory later appears in the jail (never the other
        /// way round), with its own attributes. The directory has to lie on a mount with shared propagation.
        receive_mounts: bool,
    },
}

impl Root {
    /// Changes to the root, in a mount namespace that the caller has just made.
    pub(crate) fn enter(&self) -> Result<(), JailError> {
        match self {
            Self::Unchanged => Ok(()),
            Self::Empty => {
                set_propagation(MountPropagationFlags::PRIVATE)?;
                let new_root = empty_file_system()?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(new_root.as_fd(), "", CWD, "/", flags).step(Step::ChangeRoot)?;
                change_to(&new_root)
            }
            Self::Directory { path, receive_mounts } => {
                set_propagation(if *receive_mounts {
                    MountPropagationFlags::DOWNSTREAM
                } else {
                    MountPropagationFlags::PRIVATE
                })?;
                // Made and attached in one step: a detached mount (`open_tree`) receives nothing, so it
                // would lack what the host mounts before it is moved into place.
                mount_bind_recursive(path, path).step(Step::NewRoot)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = open(path, flags, Mode::empty()).step(Step::NewRoot)?;
                make_inert(&root).step(Step::NewRoot)?;
                change_to(&root)
            }
        }
    }
}

/// Nothing that is mounted in this namespace from now on reaches the host.
fn set_propagation(kind: MountPropagationFlags) -> Result<(), JailError> {
    mount_change("/", kind | MountPropagationFlags::REC).step(Step::Propagation)
}

fn empty_file_system() -> Result<OwnedFd, JailError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step(Step::NewRoot)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "1"), ("mode", "0555")] {
        fsconfig_set_string(context.as_fd(), key, value).step(Step::NewRoot)?;
    }
    fsconfig_create(context.as_fd()).step(Step::NewRoot)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(Step::NewRoot)
}

/// Takes programs and devices away from a mount and those beneath it.
fn make_inert(mount: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the kernel reads an empty path and as many bytes as the structure has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a mount of this namespace the root and lets go of everything else that was there.
fn change_to(new_root: &OwnedFd) -> Result<(), JailError> {
    fchdir(new_root).step(Step::ChangeRoot)?;
    // With both arguments the same, the old root ends up on top of the new one, where "." finds it:
    // no directory has to be made for it (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").step(Step::ChangeRoot)?;
    unmount(".", UnmountFlags::DETACH).step(Step::ChangeRoot)?;
    chdir("/").step(Step::ChangeRoot)
}
