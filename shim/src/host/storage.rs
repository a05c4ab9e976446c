//! The shared directory of a sandbox: what of the host its guest can see.
//!
//! `<sandbox>/shared` is a mount of its own with shared propagation, so that the file server, whose mount
//! namespace is a slave, sees what is mounted below it later. Per container it holds `rootfs` and `mounts/N`.
//! It is read-only, but for what is mounted there: a guest shall not fill the host's `/run`. The mount points are made
//! behind it, in `<sandbox>/layout`.

mod bind;
mod server_view;

pub use crate::host::tree::remove as remove_tree;

use crate::error::{Error, Result};
use crate::host::mount_options::MountOptions;
use crate::host::paths::SandboxPaths;
use crate::host::undo::Undo;
use crate::oci::plan::{Bind, Owners, RootfsMount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;
pub use server_view::make_root_read_only;
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
    let (layout, dir) = (paths.layout(), paths.shared());
    for dir in [&layout, &dir] {
        fs::create_dir(dir).map_err(Error::path("make the directory", dir))?;
    }
    bind::mount_root(&layout, &dir, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC)?;
    unmount_later(&dir, undo);
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
    let (layout, shown) = (paths.layout().join(id), paths.container(id));
    make_dir(&layout, undo)?;
    make_dir(&layout.join("rootfs"), undo)?;
    for layer in rootfs {
        mount_rootfs(layer, &shown.join("rootfs"), &layout.join("unmapped"), undo)?;
    }
    if binds.is_empty() {
        return Ok(());
    }
    make_dir(&layout.join("mounts"), undo)?;
    for (index, bind) in binds.iter().enumerate() {
        let place = Path::new("mounts").join(index.to_string());
        make_mount_point(&bind.source, &layout.join(&place), undo)?;
        let target = shown.join(&place);
        bind::mount(bind, &target)?;
        unmount_later(&target, undo);
    }
    Ok(())
}

/// What every mount that the file server sees is without: who gets hold of it shall not open a device.
const INERT: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);

/// Mounts a layer at the root, or below; `hidden` is where the file server sees nothing, and is left as it was.
fn mount_rootfs(layer: &RootfsMount, root: &Path, hidden: &Path, undo: &mut Undo) -> Result<()> {
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
    let source = PathBuf::from(&layer.source);
    let data = (!options.data.is_empty()).then_some(options.data.as_str());
    let is_bind = options.flags.contains(MsFlags::MS_BIND);
    let mount_at = |target: &Path| {
        if is_bind {
            return bind::mount_root(&source, target, options.flags);
        }
        let fstype = Some(layer.fstype.as_str());
        mount(Some(&source), target, fstype, options.flags | INERT, data)
            .map_err(Error::path("mount", &source))
    };
    match (&options.base, &options.owners) {
        (None, None) => mount_at(&target)?,
        (Some(base), None) => in_directory(base, || mount_at(&target))?,
        // The layers have the owners, since an overlay can't be mapped itself.
        (Some(base), Some(owners)) => {
            let layers = mapped(base, owners);
            Passing::at(hidden, |hidden| bind::mount(&layers, hidden))?
                .with(|hidden| in_directory(hidden, || mount_at(&target)))?;
        }
        (None, Some(owners)) => {
            Passing::at(hidden, mount_at)?
                .with(|hidden| bind::mount(&mapped(hidden, owners), &target))?;
        }
    }
    unmount_later(&target, undo);
    Ok(())
}

/// A directory's mount, in which files have these owners.
fn mapped(source: &Path, owners: &Owners) -> Bind {
    Bind { source: source.to_owned(), owners: Some(owners.clone()), ..Bind::default() }
}

/// A mount that another one is made from, and that is gone thereafter.
struct Passing<'a>(&'a Path);

impl<'a> Passing<'a> {
    fn at(place: &'a Path, mount: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        fs::create_dir(place).map_err(Error::path("make the directory", place))?;
        let passing = Self(place);
        mount(place)?;
        Ok(passing)
    }

    fn with(self, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        make(self.0)
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(self.0);
    }
}

/// Does something in another working directory, which is for that alone: the process has but one.
fn in_directory(dir: &Path, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    in_own_thread(|| {
        chdir(dir).map_err(Error::path("go to the directory", dir))?;
        work()
    })
}

/// Does something on a thread with a root, a working directory and a mount namespace that it may change.
fn in_own_thread(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)
                .map_err(Error::system("part from the working directory"))?;
            work()
        });
        let thread = thread.map_err(Error::system("start a thread"))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::FailedPrecondition("the mount's thread panicked".into()))
        })
    })
}

/// Makes what a file or directory of the host is mounted on.
fn make_mount_point(source: &Path, target: &Path, undo: &mut Undo) -> Result<()> {
    let meta = fs::metadata(source).map_err(Error::path("bind mount", source))?;
    let kind = meta.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        let text = format!("bind mount {}: the guest has no devices of the host", source.display());
        return Err(Error::InvalidArgument(text));
    }
    if meta.is_dir() {
        return make_dir(target, undo);
    }
    fs::File::create_new(target).map_err(Error::path("make the mount point", target))?;
    let path = target.to_path_buf();
    undo.push(format!("remove {}", path.display()), move || fs::remove_file(path));
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
