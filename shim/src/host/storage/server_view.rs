//! Mounts as the file server has them, changed while it runs.
//!
//! It has copies in a namespace of its own, which a change of the sandbox's mounts does not reach; and the guest
//! holds files by way of these copies, so others in their place would not do.

use super::bind::{c_path, set_attributes};
use super::in_own_thread;
use crate::error::{Error, Result};
use crate::host::persist::ProcessId;
use libc::mount_attr;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Lets nothing be written to the root file system of container `id` from now on, whoever holds files of it.
///
/// # Errors
/// A file of it is open for writing, or the file server has ended.
pub fn make_root_read_only(server: ProcessId, id: &str) -> Result<()> {
    let root = Path::new("/").join(id).join("rootfs");
    let change =
        mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let what = "make the root file system read-only";
    in_own_thread(|| {
        let process =
            server.open().ok_or_else(|| Error::Ended("its file server is gone".into()))?;
        setns(process.as_fd(), CloneFlags::CLONE_NEWNS)
            .map_err(Error::system("enter the file server's mounts"))?;
        let path = c_path(&root).map_err(Error::system(what))?;
        set_attributes(libc::AT_FDCWD, &path, 0, change).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                Error::FailedPrecondition(format!("{what}: the guest has a file open for writing"))
            }
            _ => Error::system(what)(error),
        })
    })
}
