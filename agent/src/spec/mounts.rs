//! What libcontainer leaves undone of a specification's mounts.
//!
//! - A tmpfs has the mode of the directory that it hides, as runc gives it.
//! - `tmpcopyup`: the tmpfs is made and filled here, and bound into the container.
//! - sysfs belongs to a network namespace, mqueue to an IPC namespace; a container with users of its own that shares
//!   the guest's could not mount them, so they are mounted here and bound.
//! - Read-only paths: libcontainer would take programs and devices below them away. Masked directories share one
//!   tmpfs. Both are bound when the container's first process is in its working directory already, so it is told
//!   whether to go there anew.
//! - A tmpfs, and /dev, that are to be read-only become so when everything in them is made.
//! - A destination may lead through links to what is not there yet: libcontainer would refuse them.
//! - A working directory that is missing is made.
//! - `nosymfollow` is known to libcontainer as an attribute of a whole tree only.
//! - `sync` and `dirsync` belong to a file system; libcontainer takes them for a mount's and drops them.
//! - Propagation, also the root's, is set from within the container's mount namespace, once the mounts are there.

use crate::spec::late_mounts::LateMounts;
use crate::spec::{id_maps, place};
use libcontainer::rootfs::utils::{is_bind, parse_mount};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Most levels of directories that are copied.
const MAX_DEPTH: u32 = 128;

impl LateMounts {
    /// Changes the mounts of `spec` to what libcontainer does. What has to be filled lies in `directory`.
    ///
    /// # Errors
    /// A tmpfs can't be made or filled; what was made is unmounted when the result is dropped.
    pub fn take_over(spec: &mut Spec, directory: &Path) -> io::Result<Self> {
        let mut late = Self::default();
        late.owner = id_maps::of_guest(spec, (0, 0));
        late.cwd = spec.process().as_ref().map(|process| process.cwd().clone()).unwrap_or_default();
        let Some(rootfs) = spec.root().as_ref().map(|root| root.path().clone()) else {
            return Ok(late);
        };
        let (foreign_kinds, mut root) = (foreign(spec), None);
        let of_cwd = late.make_cwd(spec)?;
        if let Some(linux) = spec.linux_mut() {
            let paths = linux.readonly_paths_mut().take().unwrap_or_default();
            late.read_only = paths.into_iter().map(PathBuf::from).collect();
            let paths = linux.masked_paths_mut().take().unwrap_or_default();
            late.masked = paths.into_iter().map(PathBuf::from).collect();
            // libcontainer would share the guest's mounts with `shared`, and so what is bound of them.
            root = linux.rootfs_propagation().clone().filter(|text| !text.is_empty());
            linux.set_rootfs_propagation(None);
        }
        place::check_sources(&rootfs, spec.mounts().as_deref().unwrap_or_default())?;
        let mut covered: Vec<PathBuf> = Vec::new();
        for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            let mut to = mount.destination().clone();
            // libcontainer refuses those on anything but a directory of the image's.
            if !matches!(mount.typ().as_deref(), Some("proc" | "sysfs")) {
                to = place::destination(&rootfs, &to, &covered)?;
                mount.set_destination(to.clone());
            }
            // The path of a mount that this one hides leads elsewhere in the end, or nowhere.
            late.propagation.retain(|(earlier, _)| !earlier.starts_with(&to));
            late.remounts.retain(|earlier| !earlier.starts_with(&to));
            late.propagation.extend(propagation(mount).map(|flags| (to.clone(), flags)));
            // What an earlier mount hides is not what this one is mounted on.
            let hidden = covered.iter().any(|earlier| to.starts_with(earlier));
            if !is_bind(mount) {
                mark_superblock_flags(mount);
            } else if let Some(options) = mount.options_mut() {
                translate_symfollow(options);
            }
            let is_tmpfs = mount.typ().as_deref() == Some("tmpfs") && !is_bind(mount);
            if (is_tmpfs || to == Path::new("/dev")) && take_read_only(mount) {
                late.remounts.push(to.clone());
            }
            if is_tmpfs {
                let open = || place::open_in_root(&rootfs, &to, OFlag::O_PATH | OFlag::O_DIRECTORY);
                let below = (!hidden).then(open).and_then(Result::ok);
                late.adapt_tmpfs(mount, below.as_ref(), directory)?;
                if of_cwd == Some(index) {
                    late.make_cwd_in(mount, &to, directory)?;
                }
            }
            if mount.typ().as_deref().is_some_and(|kind| foreign_kinds.contains(&kind)) {
                late.make_and_bind(mount, directory)?;
            }
            covered.push(to);
        }
        if let Some(text) = root {
            let unknown = || io::Error::other(format!("linux.rootfsPropagation: {text:?}"));
            let flags = propagation_of(&text).ok_or_else(unknown)?;
            late.propagation.push(("/".into(), flags));
        }
        Ok(late)
    }

    /// Makes the working directory where it is missing. Some: the mount below which it has to be made, because
    /// that exists only once it is mounted.
    fn make_cwd(&self, spec: &Spec) -> io::Result<Option<usize>> {
        let Some(place) = place::of(spec, &self.cwd) else {
            return Ok(place::covering(spec, &self.cwd));
        };
        match place.open(OFlag::O_PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                place.make_directory(self.owner).map_err(|error| {
                    io::Error::other(format!("making process.cwd {}: {error}", self.cwd.display()))
                })?;
            }
            // What else is wrong with it is found when the process goes there.
            _ => {}
        }
        Ok(None)
    }

    /// Makes the working directory in a tmpfs that is mounted on `to`.
    fn make_cwd_in(&mut self, what: &mut Mount, to: &Path, directory: &Path) -> io::Result<()> {
        let cwd = place::normal(&self.cwd);
        let below = match cwd.strip_prefix(to) {
            Ok(below) if below != Path::new("") => below.to_owned(),
            _ => return Ok(()),
        };
        let base = match what.source() {
            // It was made for its contents' sake.
            Some(made) if is_bind(what) => made.clone(),
            _ => self.make_and_bind(what, directory)?,
        };
        place::Place { base, below }.make_directory(self.owner)
    }

    fn adapt_tmpfs(
        &mut self,
        mount: &mut Mount,
        below: Option<&OwnedFd>,
        directory: &Path,
    ) -> io::Result<()> {
        let mut options = mount.options().clone().unwrap_or_default();
        let copy_up = options.iter().any(|option| option == "tmpcopyup");
        options.retain(|option| option != "tmpcopyup");
        let path = below.map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        if let Some(path) = &path
            && !options.iter().any(|option| option.starts_with("mode="))
        {
            options.push(format!("mode={:04o}", fs::metadata(path)?.mode() & 0o7777));
        }
        mount.set_options(Some(options));
        if let (Some(path), true) = (&path, copy_up) {
            copy_tree(path, &self.make_and_bind(mount, directory)?, MAX_DEPTH)?;
        }
        Ok(())
    }

    /// Mounts in `directory` what is then bound into the container; where.
    fn make_and_bind(&mut self, what: &mut Mount, directory: &Path) -> io::Result<PathBuf> {
        let data = parse_mount(what).map_err(io::Error::other)?.data;
        let made = directory.join(format!("mount-{}", self.made.len()));
        fs::create_dir(&made)?;
        let kind = what.typ().as_deref();
        mount(kind, &made, kind, MsFlags::empty(), Some(data.join(",").as_str()))?;
        self.made.push(made.clone());
        let options = what.options_mut().get_or_insert_default();
        options.retain(|option| !data.contains(option));
        options.push("bind".to_owned());
        what.set_typ(Some("bind".to_owned())).set_source(Some(made.clone()));
        Ok(made)
    }
}

/// The file systems that belong to a namespace of the guest's, and so can't be mounted by the container's users.
fn foreign(spec: &Spec) -> Vec<&'static str> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let has = |kind| namespaces.into_iter().flatten().any(|one| one.typ() == kind);
    let of = [("sysfs", LinuxNamespaceType::Network), ("mqueue", LinuxNamespaceType::Ipc)];
    let shared = of.into_iter().filter(|(_, kind)| !has(*kind)).map(|(name, _)| name);
    if id_maps::has_users(spec) { shared.collect() } else { Vec::new() }
}

/// libcontainer knows these of a whole tree only; of the guest's binds each is one mount.
fn translate_symfollow(options: &mut Vec<String>) {
    let last = options.iter().rfind(|option| *option == "nosymfollow" || *option == "symfollow");
    let is_set = last.is_some_and(|option| option == "nosymfollow");
    options.retain(|option| option != "nosymfollow" && option != "symfollow");
    if is_set {
        options.push("rnosymfollow".to_owned());
    }
}

/// Takes `ro` off a mount; whether it was to be.
fn take_read_only(mount: &mut Mount) -> bool {
    let Some(options) = mount.options_mut() else { return false };
    let last = options.iter().rfind(|option| *option == "ro" || *option == "rw").cloned();
    options.retain(|option| option != "ro");
    last.as_deref() == Some("ro")
}

/// The last propagation option of a mount.
fn propagation(mount: &Mount) -> Option<MsFlags> {
    mount.options().iter().flatten().filter_map(|option| propagation_of(option)).next_back()
}

fn propagation_of(option: &str) -> Option<MsFlags> {
    let kind = |option: &str| {
        Some(match option {
            "shared" => MsFlags::MS_SHARED,
            "private" => MsFlags::MS_PRIVATE,
            "slave" => MsFlags::MS_SLAVE,
            "unbindable" => MsFlags::MS_UNBINDABLE,
            _ => return None,
        })
    };
    kind(option).or_else(|| Some(kind(option.strip_prefix('r')?)? | MsFlags::MS_REC))
}

/// With a value, libcontainer hands an option on to the file system; the kernel ignores this one.
fn mark_superblock_flags(mount: &mut Mount) {
    for option in mount.options_mut().iter_mut().flatten() {
        if option == "sync" || option == "dirsync" {
            option.push('=');
        }
    }
}

/// Copies what is in a directory, with owners and modes. Nothing runs in the container yet that could
/// change it meanwhile.
fn copy_tree(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!("more than {MAX_DEPTH} levels of directories")));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (metadata, copy) = (entry.metadata()?, to.join(entry.file_name()));
        let kind = metadata.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &copy)?;
        } else if kind.is_dir() {
            fs::create_dir(&copy)?;
            copy_tree(&entry.path(), &copy, depth - 1)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &copy)?;
        } else if !kind.is_socket() {
            let kind = SFlag::from_bits_truncate(metadata.mode() & libc::S_IFMT);
            mknod(&copy, kind, Mode::empty(), metadata.rdev())?;
        }
        if !kind.is_socket() {
            lchown(&copy, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        if !kind.is_symlink() && !kind.is_socket() {
            fs::set_permissions(&copy, Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(rootfs: &Path, mounts: &serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0", "root": {"path": rootfs}, "mounts": mounts, "linux": {},
        }))
        .unwrap()
    }

    fn options(spec: &Spec, index: usize) -> Vec<String> {
        spec.mounts().as_ref().unwrap()[index].options().clone().unwrap_or_default()
    }

    #[test]
    fn a_tmpfs_has_the_mode_of_what_it_hides_unless_it_says_one() {
        let root = std::env::temp_dir().join(format!("late-mounts-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("e")).unwrap();
        fs::set_permissions(root.join("a"), Permissions::from_mode(0o1770)).unwrap();
        let tmpfs = |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "source": "t", "options": options});
        let mounts = json!([
            tmpfs("/a", &["ro"]),
            tmpfs("/a/b", &[]),
            tmpfs("/c", &["sync"]),
            tmpfs("/e", &["mode=1"])
        ]);
        let mut spec = spec(&root, &mounts);
        let late = LateMounts::take_over(&mut spec, &root).unwrap();
        assert_eq!(late.remounts, [Path::new("/a")]);
        let all = [0, 1, 2, 3].map(|index| options(&spec, index));
        assert_eq!(all, [vec!["mode=1770"], vec![], vec!["sync="], vec!["mode=1"]]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_link_is_followed_but_not_with_proc() {
        let root = std::env::temp_dir().join(format!("late-mounts-proc-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for link in ["proc", "run"] {
            symlink("/elsewhere", root.join(link)).unwrap();
        }
        let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs"}]);
        let mut spec = spec(&root, &mounts);
        LateMounts::take_over(&mut spec, &root).unwrap();
        let to = |index: usize| spec.mounts().as_ref().unwrap()[index].destination().clone();
        assert_eq!([to(0), to(1)], [Path::new("/proc"), Path::new("/elsewhere")]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_last_propagation_counts() {
        let mount = |to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": "/", "options": options});
        let mounts = json!([
            mount("/a", &["rbind", "shared", "rslave"]),
            mount("/b", &["bind", "ro"]),
            mount("/c", &["unbindable"])
        ]);
        let late =
            LateMounts::take_over(&mut spec(Path::new("/"), &mounts), Path::new("/")).unwrap();
        let flags: Vec<_> = late.propagation.iter().map(|(_, flags)| *flags).collect();
        assert_eq!(flags, [MsFlags::MS_SLAVE | MsFlags::MS_REC, MsFlags::MS_UNBINDABLE]);
    }

    #[test]
    fn nosymfollow_is_said_as_libcontainer_understands_it() {
        let translated = |options: &[&str]| {
            let mut options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            translate_symfollow(&mut options);
            options.join(",")
        };
        assert_eq!(translated(&["bind", "nosymfollow", "ro"]), "bind,ro,rnosymfollow");
        assert_eq!(translated(&["bind", "nosymfollow", "symfollow"]), "bind");
    }

    #[test]
    fn nothing_is_done_to_a_mount_that_a_later_one_hides() {
        let tmpfs = |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "source": "t", "options": options});
        let mounts = json!([
            tmpfs("/hidden-test/x/y", &["ro", "shared"]),
            tmpfs("/hidden-test/xy", &["ro", "shared"]),
            tmpfs("/hidden-test/x", &["private"]),
        ]);
        let late =
            LateMounts::take_over(&mut spec(Path::new("/"), &mounts), Path::new("/")).unwrap();
        assert_eq!(late.remounts, [Path::new("/hidden-test/xy")]);
        let paths: Vec<_> = late.propagation.iter().map(|(path, _)| path.as_path()).collect();
        assert_eq!(paths, [Path::new("/hidden-test/xy"), Path::new("/hidden-test/x")]);
    }

    #[test]
    fn the_root_comes_last_and_an_unknown_propagation_is_named() {
        let with = |text: &str| {
            let mut spec = spec(Path::new("/"), &json!([]));
            spec.linux_mut().as_mut().unwrap().set_rootfs_propagation(Some(text.to_owned()));
            LateMounts::take_over(&mut spec, Path::new("/")).map(|late| late.propagation.clone())
        };
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        assert_eq!(with("rshared").unwrap(), [("/".into(), flags)]);
        assert!(with("").unwrap().is_empty());
        assert!(with("odd").unwrap_err().to_string().contains("odd"));
    }

    #[test]
    fn a_tree_is_copied_as_it_is() {
        let root = std::env::temp_dir().join(format!("late-mounts-copy-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        fs::create_dir_all(from.join("directory")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("directory/file"), "text").unwrap();
        fs::set_permissions(from.join("directory/file"), Permissions::from_mode(0o4711)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_retain(0o600)).unwrap();
        copy_tree(&from, &to, 3).unwrap();
        assert_eq!(fs::read_to_string(to.join("directory/file")).unwrap(), "text");
        assert_eq!(fs::metadata(to.join("directory/file")).unwrap().mode() & 0o7777, 0o4711);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
        assert!(fs::symlink_metadata(to.join("pipe")).unwrap().file_type().is_fifo());
        assert!(copy_tree(&from, &root, 1).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
