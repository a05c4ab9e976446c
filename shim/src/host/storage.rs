//! The shared directory of a sandbox: what of the host its guest can see.
//!
//! `<sandbox>/shared` is a mount of its own with shared propagation, so that the file server, whose mount
//! namespace is a slave, sees what is mounted below it later. Per container it holds `rootfs` and `mounts/N`.

mod bind;

pub use crate::host::tree::remove as remove_tree;

use crate::error::{Error, Result};
use crate::host::mount_options::MountOptions;
use crate::host::paths::SandboxPaths;
use crate::host::undo::Undo;
use crate::oci::plan::{Bind, RootfsMount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Gives the calling process its own mount namespace, which still sees what the host mounts later.
///
/// What a sandbox mounts is then seen by nobody else, and is gone when its processes are, however they end.
/// To be called before there is a second thread.
///
/// # Errors
/// The caller is not root.
pub fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("make a mount namespace"))?;
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(Error::path("stop mount propagation from", "/"))
}

/// Makes the sandbox's shared directory.
///
/// # Errors
/// The system's answer.
pub fn make_shared(paths: &SandboxPaths, undo: &mut Undo) -> Result<()> {
    let dir = paths.shared();
    fs::create_dir(&dir).map_err(Error::path("make the directory", &dir))?;
    mount_on(&dir, None, Some(&dir), MsFlags::MS_BIND, None, undo)?;
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, &dir, None::<&str>, flags, None::<&str>)
            .map_err(Error::path("set the propagation of", &dir))?;
    }
    Ok(())
}

/// Shows a container's root file system and bind mounts in the shared directory.
///
/// # Errors
/// A mount fails; its source and target are named. What was mounted before is undone when `undo` is.
pub fn add_container(
    paths: &SandboxPaths,
    id: &str,
    rootfs: &[RootfsMount],
    binds: &[Bind],
    undo: &mut Undo,
) -> Result<()> {
    let dir = paths.container(id);
    make_dir(&dir, undo)?;
    let root = dir.join("rootfs");
    make_dir(&root, undo)?;
    for layer in rootfs {
        mount_rootfs(layer, &root, undo)?;
    }
    if binds.is_empty() {
        return Ok(());
    }
    let mounts = dir.join("mounts");
    make_dir(&mounts, undo)?;
    for (index, bind) in binds.iter().enumerate() {
        add_bind(bind, &mounts.join(index.to_string()), undo)?;
    }
    Ok(())
}

fn mount_rootfs(layer: &RootfsMount, root: &Path, undo: &mut Undo) -> Result<()> {
    let target = match layer.target.trim_start_matches('/') {
        "" => root.to_path_buf(),
        below
            if Path::new(below)
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_))) =>
        {
            root.join(below)
        }
        other => return Err(Error::InvalidArgument(format!("rootfs mount target {other:?}"))),
    };
    let options = MountOptions::parse(&layer.options)?;
    let is_bind = options.flags.contains(MsFlags::MS_BIND);
    let fstype = (!is_bind).then_some(layer.fstype.as_str());
    let source = PathBuf::from(&layer.source);
    let data = (!options.data.is_empty()).then_some(options.data.as_str());
    let mut mount_it = || {
        if is_bind {
            mount_bind(&source, &target, options.flags, undo)
        } else {
            mount_on(&target, fstype, Some(&source), options.flags, data, undo)
        }
    };
    match &options.base {
        Some(base) => in_directory(base, mount_it),
        None => mount_it(),
    }
}

/// Does something in another working directory, which is for that alone: the process has but one.
fn in_directory(dir: &Path, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)
                .map_err(Error::system("part from the working directory"))?;
            chdir(dir).map_err(Error::path("go to the directory", dir))?;
            work()
        });
        let thread = thread.map_err(Error::system("start a thread"))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::FailedPrecondition("the mount's thread panicked".into()))
        })
    })
}

/// Binds one file or directory of the host.
fn add_bind(bind: &Bind, target: &Path, undo: &mut Undo) -> Result<()> {
    let source = &bind.source;
    let meta = fs::metadata(source).map_err(Error::path("bind mount", source))?;
    let kind = meta.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        let text = format!("bind mount {}: the guest has no devices of the host", source.display());
        return Err(Error::InvalidArgument(text));
    }
    if meta.is_dir() {
        make_dir(target, undo)?;
    } else {
        fs::File::create_new(target).map_err(Error::path("make the mount point", target))?;
        let path = target.to_path_buf();
        undo.push(format!("remove {}", path.display()), move || fs::remove_file(path));
    }
    bind::mount(bind, target)?;
    unmount_later(target, undo);
    Ok(())
}

/// A bind mount; the kernel takes its other flags in a second call only.
fn mount_bind(source: &Path, target: &Path, flags: MsFlags, undo: &mut Undo) -> Result<()> {
    let bind = flags & (MsFlags::MS_BIND | MsFlags::MS_REC);
    mount_on(target, None, Some(source), bind, None, undo)?;
    let rest = flags - bind;
    if rest.is_empty() {
        return Ok(());
    }
    let flags = rest | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .map_err(Error::path("set the flags of", target))
}

fn mount_on(
    target: &Path,
    fstype: Option<&str>,
    source: Option<&Path>,
    flags: MsFlags,
    data: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    mount(source, target, fstype, flags, data).map_err(|error| {
        let path = source.unwrap_or(target);
        Error::path(if fstype.is_some() { "mount" } else { "bind mount" }, path)(error)
    })?;
    unmount_later(target, undo);
    Ok(())
}

fn unmount_later(target: &Path, undo: &mut Undo) {
    let path = target.to_path_buf();
    undo.push(format!("unmount {}", path.display()), move || {
        // Detached: the guest may still hold files of it open when its container is deleted.
        umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)
    });
}

fn make_dir(dir: &Path, undo: &mut Undo) -> Result<()> {
    fs::create_dir(dir).map_err(Error::path("make the directory", dir))?;
    let path = dir.to_path_buf();
    undo.push(format!("remove {}", path.display()), move || fs::remove_dir(path));
    Ok(())
}

#[cfg(test)]
mod tests;
