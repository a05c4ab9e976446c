//! Where a path of a container's lies for the guest, before the container's mounts are made.

use libcontainer::rootfs::utils::is_bind;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::{Mount, Spec};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Most links on the way to a destination, as in the kernel.
const MAX_LINKS: u32 = 40;

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
    let root = spec.root().as_ref()?.path();
    among(root, spec.mounts().as_deref().unwrap_or_default(), path)
}

/// Which of the mounts a path is on in the end.
pub fn covering(spec: &Spec, path: &Path) -> Option<usize> {
    covering_among(spec.mounts().as_deref().unwrap_or_default(), &normal(path))
}

fn covering_among(mounts: &[Mount], path: &Path) -> Option<usize> {
    mounts.iter().rposition(|mount| path.starts_with(normal(mount.destination())))
}

/// A source of a bind mount may itself be in the container's root, and on a mount that is made before.
fn among(root: &Path, mounts: &[Mount], path: &Path) -> Option<Place> {
    let path = normal(path);
    let below = |to: &Path| path.strip_prefix(to).map(Path::to_owned).ok();
    let Some(index) = covering_among(mounts, &path) else {
        return Some(Place { base: root.to_owned(), below: below(Path::new("/"))? });
    };
    let (mount, below) = (&mounts[index], below(&normal(mounts[index].destination()))?);
    let source = mount.source().as_ref().filter(|_| is_bind(mount))?;
    let Ok(inside) = source.strip_prefix(root) else {
        return Some(Place { base: source.clone(), below });
    };
    let mut inside = Path::new("/").join(inside);
    if mount.options().iter().flatten().any(|option| option == "rbind") {
        inside.extend(below.components());
        return among(root, &mounts[..index], &inside);
    }
    let mut place = among(root, &mounts[..index], &inside)?;
    place.below.extend(below.components());
    Some(place)
}

/// Sees that no source of a bind mount leads out of the container's root by a link of the image's: libcontainer
/// would follow it in the guest.
///
/// # Errors
/// One does, or is on a file system such as /proc, where links lead anywhere.
pub fn check_sources(root: &Path, mounts: &[Mount]) -> io::Result<()> {
    for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| is_bind(mount)) {
        let inside = mount.source().as_ref().and_then(|source| source.strip_prefix(root).ok());
        let Some(inside) = inside.filter(|inside| *inside != Path::new("")) else { continue };
        let (path, earlier) = (Path::new("/").join(inside), &mounts[..index]);
        let refused = |what: &str| {
            let path = path.display();
            Err(io::Error::other(format!("the source {path} of a bind mount {what}")))
        };
        let Some(place) = among(root, earlier, &path) else {
            let on = covering_among(earlier, &path).and_then(|index| earlier[index].typ().clone());
            if on.as_deref() == Some("tmpfs") {
                continue;
            }
            return refused("is on no file system of the container's own");
        };
        let base = openat(AT_FDCWD, &place.base, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let below = Some(place.below).filter(|below| *below != Path::new(""));
        if below.is_some_and(|below| openat2(base.as_fd(), &below, how).err() == Some(Errno::ELOOP))
        {
            return refused("leads through a link");
        }
    }
    Ok(())
}

/// Where a mount on `path` goes: links that lead to nothing are followed, as runc does, to what has to be made.
/// What lies below the `covered` paths is not known yet, and left as it is.
///
/// # Errors
/// More than [`MAX_LINKS`] links; the system's answer.
pub fn destination(root: &Path, path: &Path, covered: &[PathBuf]) -> io::Result<PathBuf> {
    match open_in_root(root, path, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => return Ok(path.to_owned()),
    }
    let mut left: Vec<OsString> = components(path).rev().collect();
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(name);
        if covered.contains(&at) {
            at.extend(left.into_iter().rev());
            break;
        }
        let Some(target) = link_in_root(root, &at)? else { continue };
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        at.pop();
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        left.extend(components(&target).rev());
    }
    Ok(at)
}

/// The names of a path, with `..`.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
}

/// What a link says; `None`: it is something else, or nothing.
fn link_in_root(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let link = match open_in_root(root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if SFlag::from_bits_truncate(fstat(&link)?.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFLNK {
        return Ok(None);
    }
    Ok(Some(readlinkat(&link, "")?.into()))
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

    /// Makes the directory and those on the way that are missing, with mode 0755 and this user and group.
    ///
    /// # Errors
    /// The system's answer.
    pub fn make_directory(&self, (user, group): (u32, u32)) -> io::Result<()> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut made = PathBuf::new();
        for component in self.below.components() {
            let above = open_in_root(&self.base, &made, directory)?;
            made.push(component);
            match open_in_root(&self.base, &made, directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&above, component.as_os_str(), Mode::from_bits_retain(0o755)) {
                        Ok(()) => {
                            let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
                            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                            fchownat(&above, component.as_os_str(), owner.0, owner.1, flags)?;
                        }
                        Err(Errno::EEXIST) => {}
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
    use std::os::unix::fs::{MetadataExt, symlink};

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
        symlink("/inside", base.join("link")).unwrap();
        symlink("/../../nowhere", base.join("out")).unwrap();
        let make =
            |below: &str| Place { base: base.clone(), below: below.into() }.make_directory((1, 2));
        make("link/a/b").unwrap();
        make("link/a/b").unwrap();
        let made = std::fs::metadata(base.join("inside/a/b")).unwrap();
        assert!(made.is_dir() && (made.uid(), made.gid()) == (1, 2));
        // A link to nothing is neither followed out nor replaced.
        assert!(make("out/c").is_err());
        std::fs::write(base.join("file"), "").unwrap();
        assert!(make("file/c").is_err());
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_destination_behind_links_to_nothing_is_where_they_lead() {
        let root = std::env::temp_dir().join(format!("destination-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        symlink("/tmp/foo/bar", root.join("jump")).unwrap();
        symlink("/jump/baz/../hosts", root.join("etc/hosts")).unwrap();
        symlink("../../../../above", root.join("etc/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/etc", root.join("there")).unwrap();
        let to = |path: &str, covered: &[&str]| {
            let covered: Vec<_> = covered.iter().map(PathBuf::from).collect();
            destination(&root, Path::new(path), &covered).map(|to| to.display().to_string())
        };
        assert_eq!(to("/etc/hosts", &[]).unwrap(), "/tmp/foo/bar/hosts");
        assert_eq!(to("/etc/up/x", &[]).unwrap(), "/above/x");
        assert_eq!(to("/new/one", &[]).unwrap(), "/new/one");
        // What is there is left to libcontainer, what is covered as well.
        assert_eq!(to("/there", &[]).unwrap(), "/there");
        assert_eq!(to("/there/new", &[]).unwrap(), "/etc/new");
        assert_eq!(to("/etc/hosts", &["/etc"]).unwrap(), "/etc/hosts");
        assert!(to("/loop/x", &[]).is_err() || to("/loop/x", &[]).unwrap() == "/loop/x");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_source_in_the_root_does_not_lead_out_of_it() {
        let all = std::env::temp_dir().join(format!("sources-{}", std::process::id()));
        let (root, volume) = (all.join("root"), all.join("volume"));
        std::fs::create_dir_all(root.join("etc/below")).unwrap();
        std::fs::create_dir_all(&volume).unwrap();
        symlink("/", root.join("etc/link")).unwrap();
        symlink("/", volume.join("link")).unwrap();
        let bind = |source: &Path, to: &str, kind: &str| json!({"source": source, "destination": to, "options": [kind]});
        let check = |mounts: &serde_json::Value| {
            let spec = spec(mounts);
            check_sources(&root, spec.mounts().as_ref().unwrap()).map_err(|e| e.to_string())
        };
        let volume_first = |then: serde_json::Value| {
            json!([
                bind(&volume, "/etc/below", "bind"),
                bind(&root.join("etc"), "/two", "rbind"),
                bind(&root.join("etc"), "/one", "bind"),
                then
            ])
        };
        assert_eq!(check(&json!([bind(&root.join("etc/below"), "/a", "bind")])), Ok(()));
        assert_eq!(check(&json!([bind(&root.join("etc/none"), "/a", "bind")])), Ok(()));
        for (mounts, what) in [
            (json!([bind(&root.join("etc/link/usr"), "/a", "bind")]), "link"),
            (volume_first(bind(&root.join("etc/below/link"), "/a", "bind")), "link"),
            (volume_first(bind(&root.join("two/below/link"), "/a", "bind")), "link"),
            (volume_first(bind(&root.join("one/link"), "/a", "bind")), "link"),
            (
                json!([{"destination": "/proc", "type": "proc", "source": "proc"},
                bind(&root.join("proc/self/root"), "/a", "bind")]),
                "no file system",
            ),
        ] {
            assert!(check(&mounts).unwrap_err().contains(what), "{mounts}");
        }
        // A bind that is not recursive shows the directory that the volume hides.
        assert_eq!(check(&volume_first(bind(&root.join("one/below/link"), "/a", "bind"))), Ok(()));
        std::fs::remove_dir_all(&all).unwrap();
    }
}
