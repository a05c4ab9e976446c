//! Where a path of a container's lies for the guest, before the container's mounts are made.

use libcontainer::rootfs::utils::is_bind;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use oci_spec::runtime::Spec;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// A directory (or file) of the guest's, and a path below it that must not lead out.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The container's root, or the source of the bind mount that covers the path.
    pub base: PathBuf,
    /// Relative; empty: the base itself.
    pub below: PathBuf,
}

/// `None`: it is on a file system that exists only once it is mounted.
pub fn of(spec: &Spec, path: &Path) -> Option<Place> {
    let path = normal(path);
    let covers = |to: &Path| path.strip_prefix(to).ok().map(Path::to_owned);
    let all = spec.mounts().iter().flatten().rev();
    let last = all.filter_map(|mount| Some((mount, covers(&normal(mount.destination()))?))).next();
    match last {
        None => {
            let base = spec.root().as_ref()?.path().clone();
            Some(Place { base, below: covers(Path::new("/"))? })
        }
        Some((mount, below)) if is_bind(mount) => {
            Some(Place { base: mount.source().clone()?, below })
        }
        Some(_) => None,
    }
}

/// Absolute, without `.` and `..`, as if no component were a link.
pub fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

impl Place {
    /// Opens it; links are followed below the base only.
    ///
    /// # Errors
    /// The system's answer.
    pub fn open(&self, flags: OFlag) -> io::Result<OwnedFd> {
        if self.below.as_os_str().is_empty() {
            return Ok(openat(AT_FDCWD, &self.base, flags | OFlag::O_CLOEXEC, Mode::empty())?);
        }
        open_in_root(&self.base, &self.below, flags)
    }

    /// Makes the directory and those on the way that are missing, with mode 0755.
    ///
    /// # Errors
    /// The system's answer.
    pub fn make_directory(&self) -> io::Result<()> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut made = PathBuf::new();
        for component in self.below.components() {
            let above = open_in_root(&self.base, &made, directory)?;
            made.push(component);
            match open_in_root(&self.base, &made, directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&above, component.as_os_str(), Mode::from_bits_retain(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                opened => drop(opened?),
            }
        }
        Ok(())
    }
}

/// Opens a path of a tree that an image owns: links in it don't lead out of it.
///
/// # Errors
/// The system's answer.
pub fn open_in_root(root: &Path, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, root, directory, Mode::empty())?;
    // An empty path is none.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root.as_fd(), path, how)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(mounts: &serde_json::Value) -> Spec {
        let spec = json!({"ociVersion": "1.2.0", "root": {"path": "/the/root"}, "mounts": mounts});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn the_last_mount_that_covers_a_path_has_it() {
        let mounts = json!([
            {"destination": "/etc", "type": "bind", "source": "/one"},
            {"destination": "/etc/passwd", "source": "/a/file", "options": ["bind", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/srv/x/", "type": "bind", "source": "/two"},
            {"destination": "/srv", "type": "bind", "source": "/three"},
        ]);
        let place = |path: &str| {
            let place = of(&spec(&mounts), Path::new(path))?;
            Some((place.base.display().to_string(), place.below.display().to_string()))
        };
        let at = |base: &str, below: &str| Some((base.to_owned(), below.to_owned()));
        assert_eq!(place("/etc/group"), at("/one", "group"));
        assert_eq!(place("/etc/passwd"), at("/a/file", ""));
        assert_eq!(place("/srv/x/y"), at("/three", "x/y"));
        assert_eq!(place("/home/../usr/./bin"), at("/the/root", "usr/bin"));
        assert_eq!(place("/"), at("/the/root", ""));
        assert_eq!(place("/tmp/x"), None);
    }

    #[test]
    fn directories_are_made_below_the_base_only() {
        let base = std::env::temp_dir().join(format!("place-{}", std::process::id()));
        std::fs::create_dir_all(base.join("inside")).unwrap();
        std::os::unix::fs::symlink("/inside", base.join("link")).unwrap();
        std::os::unix::fs::symlink("/../../nowhere", base.join("out")).unwrap();
        let make = |below: &str| Place { base: base.clone(), below: below.into() }.make_directory();
        make("link/a/b").unwrap();
        make("link/a/b").unwrap();
        assert!(base.join("inside/a/b").is_dir());
        // A link to nothing is neither followed out nor replaced.
        assert!(make("out/c").is_err());
        std::fs::write(base.join("file"), "").unwrap();
        assert!(make("file/c").is_err());
        std::fs::remove_dir_all(&base).unwrap();
    }
}
