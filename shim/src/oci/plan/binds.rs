//! Bind mounts: what of the host a container is shown, and how.
//!
//! - The guest has a bind as one mount, with everything below it: whether it can be written to is decided on the
//!   host, for the mount and for those below it apart. Where both are read-only the guest's mount says so as well.
//! - Without flags of its own a bind has those of the host's mount that its source is on, as with runc; with a user
//!   namespace it has those that take a privilege to clear in any case. When files are noted as read is one of these: there
//!   the guest is shown a mount that has it already ([`Timed`]), since nobody in such a namespace can set it.
//! - A source in the container's own root is there for the guest already. It is bound in the guest, since it may be
//!   on an earlier mount of the container's.
//! - A destination may begin with the path of the container's root.

use super::access_times::AccessTimes;
use super::host::{Host, MountOf};
use super::shared::{self, SubPath, Volume};
use crate::error::{Error, Result};
use crate::guest::paths as guest_paths;
use crate::oci::bundle::is_bind;
use crate::oci::pod::Part;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use std::path::{Component, Path, PathBuf};

/// A host file or directory that a container mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// Enforced on the host's mounts, so that the guest can't write whatever it does.
    pub read_only: bool,
    /// It is to be written to although the host's mount is read-only.
    pub writable: bool,
    /// The mounts below it as well.
    pub read_only_below: bool,
    /// With the mounts below it.
    pub recursive: bool,
    /// Whose later mounts of the host's are seen.
    pub follows: Follows,
    /// Whose the files are for the guest, where that is not as on the disk.
    pub owners: Option<Owners>,
    /// Which accesses are noted.
    pub times: AccessTimes,
    /// In it and in the mounts below it, after that.
    pub times_below: AccessTimes,
}

/// A bind that the guest is to mount with its flags, for a container that can't set them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed {
    /// In the guest.
    pub source: PathBuf,
    /// Where the guest is to show it, for that container alone.
    pub at: PathBuf,
    /// Its flags as in fstab.
    pub flags: Vec<String>,
}

/// A directory that all containers of a sandbox which ask for the same have as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedBind {
    /// Where in the shared directory, in the place of a container's id.
    pub place: String,
    /// It.
    pub bind: Bind,
}

/// What of the host's later mounts a bind shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Follows {
    /// All below its source.
    #[default]
    All,
    /// Those on mounts that were below its source when it was made, but none on its source's own mount.
    Below,
    /// None.
    Nothing,
}

/// An id-mapped mount: `container_id` is the owner's id on the disk, `host_id` that in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// Of users.
    pub users: Vec<LinuxIdMapping>,
    /// Of groups.
    pub groups: Vec<LinuxIdMapping>,
    /// Also in the mounts below it.
    pub recursive: bool,
}

impl Owners {
    /// Whom the container has as user and group of what these own on the host.
    fn shown(&self, (user, group): (u32, u32)) -> (u32, u32) {
        let shown = |id: u32, mappings: &[LinuxIdMapping]| {
            let of = |mapping: &LinuxIdMapping| {
                let nth = id.checked_sub(mapping.container_id())?;
                (nth < mapping.size()).then(|| mapping.host_id().checked_add(nth))?
            };
            mappings.iter().find_map(of).unwrap_or(NOBODY)
        };
        (shown(user, &self.users), shown(group, &self.groups))
    }
}

/// Whom the kernel shows where a mapping has none.
const NOBODY: u32 = 65534;

/// The bind mounts of a container, as they are planned.
#[derive(Debug)]
pub(super) struct Binds {
    id: String,
    /// Of the host.
    root: PathBuf,
    in_guest: PathBuf,
    /// To be shown in the container's part of the shared directory, by index.
    pub all: Vec<Bind>,
    /// To be shown for all containers, once.
    pub shared: Vec<SharedBind>,
    /// The guest's memory in place of the host's.
    pub volumes: Vec<Volume>,
    /// Parts of them.
    pub sub_paths: Vec<SubPath>,
    /// Those of `all` that the guest mounts once more.
    pub timed: Vec<Timed>,
    part: Part,
    /// Whether a shared mount of the container's is one of the host's as well.
    with_host: bool,
}

impl Binds {
    /// None yet, of a container with this root on the host and in the guest.
    pub fn new(id: &str, [root, in_guest]: [&Path; 2], part: Part, with_host: bool) -> Self {
        let (id, root, in_guest) = (id.to_owned(), root.to_owned(), in_guest.to_owned());
        let (all, shared, volumes, sub_paths, timed) = Default::default();
        Self { id, root, in_guest, all, shared, volumes, sub_paths, timed, part, with_host }
    }

    /// Makes a mount of the spec's one of the guest's.
    ///
    /// # Errors
    /// It has no source, or mappings that can't be had, or is to show the host what the container mounts.
    pub fn take(
        &mut self,
        mount: &mut Mount,
        mapped: Option<&Owners>,
        host: &dyn Host,
    ) -> Result<()> {
        if let Some(below) = self.below_root(mount.destination()) {
            mount.set_destination(Path::new("/").join(below));
        }
        if let Some(volume) = shared::take_shm(self.part, mount) {
            self.volumes.push(volume);
            return Ok(());
        }
        if !is_bind(mount) {
            return Ok(());
        }
        let source = mount.source().clone().ok_or_else(|| {
            let to = mount.destination().display();
            Error::InvalidArgument(format!("config.json: the bind mount on {to} has no source"))
        })?;
        let owners = owners(mount, mapped)?;
        if let Some(below) = self.below_root(&source) {
            // What the container mounts there the host does not see, and links on the way are the image's.
            if owners.is_some() {
                let to = mount.destination().display();
                return Err(Error::InvalidArgument(format!(
                    "config.json: the mount on {to}: a source in the container's own root can't have mappings of ids"
                )));
            }
            mount.set_source(Some(self.in_guest.join(below)));
            return Ok(());
        }
        if self.with_host {
            check_propagation(mount)?;
        }
        let of_host = host.mount_of(&source);
        let options = mount.options_mut().get_or_insert_default();
        let of_times = times_to_show(options, &of_host, mapped.is_some());
        inherit(options, &of_host.options, mapped.is_some());
        // All containers of a pod have the same users, so that what the first makes is the others' as well.
        let shown = |owner| owners.as_ref().map_or(owner, |owners| owners.shown(owner));
        let volume = shared::volume(self.part, mount, &source, host);
        if let Some(mut volume) = volume {
            volume.memory.owner = shown(volume.memory.owner);
            mount.set_source(Some(volume.path.clone()));
            self.volumes.push(volume);
            return Ok(());
        }
        let number = (&*self.id, self.sub_paths.len());
        let sub_path = shared::sub_path(self.part, &source, number, host);
        if let Some((mut volume, mut sub_path)) = sub_path {
            volume.memory.owner = shown(volume.memory.owner);
            sub_path.owner = shown(sub_path.owner);
            mount.set_source(Some(sub_path.at.clone()));
            self.volumes.push(volume);
            self.sub_paths.push(sub_path);
            return Ok(());
        }
        let has = |option: &str| mount.options().iter().flatten().any(|o| o == option);
        let (recursive, read_only_below) = (has("rbind"), has("rro"));
        let read_only = has("ro") || read_only_below;
        // What is mounted below would be held until the pod's end.
        let is_written = !read_only && of_host.directory.is_some() && !of_host.mounts_below;
        // Engines give a container's volume that its image asks for (`VOLUME`) a directory of the container's; the pod's next
        // one has another.
        let is_its_own = source.components().any(|part| part.as_os_str() == &*self.id);
        let is_shared =
            owners.is_none() && !is_its_own && shared::is_among_all(self.part, &source, is_written);
        if !is_shared && recursive && read_only && !read_only_below && of_host.mounts_below {
            // What the guest finds mounted below takes over the flags of its own mount.
            if let Some(options) = mount.options_mut() {
                options.retain(|option| option != "ro");
            }
        }
        let is_so_on_host = of_host.options.iter().any(|option| option == "ro");
        let writable = !read_only && is_so_on_host && mapped.is_none();
        let follows = follows(mount);
        let options = mount.options().as_deref().unwrap_or_default();
        let times = AccessTimes::of_mount(options);
        let times_below = AccessTimes::of_all(options);
        let bind = Bind {
            source,
            read_only: read_only && !is_shared,
            read_only_below: read_only_below && !is_shared,
            writable,
            recursive,
            follows,
            owners,
            times,
            times_below,
        };
        if is_shared {
            // What is at its path by the time of another container's create may be another directory.
            let place = guest_paths::place_of_all(&format!("{bind:?} {:?}", of_host.directory));
            mount.set_source(Some(guest_paths::of_all(&place)));
            self.shared.push(SharedBind { place, bind });
        } else {
            let mut source = guest_paths::bind(&self.id, self.all.len());
            if !of_times.is_empty() {
                let at = guest_paths::timed(&self.id, self.timed.len());
                self.timed.push(Timed { source, at: at.clone(), flags: of_times });
                source = at;
            }
            mount.set_source(Some(source));
            self.all.push(bind);
        }
        Ok(())
    }

    /// What of a path is below the container's root; it is not the root itself.
    fn below_root(&self, path: &Path) -> Option<PathBuf> {
        let plain = |component| !matches!(component, Component::ParentDir);
        let root = self.root.is_absolute().then_some(&self.root)?;
        let below = path.strip_prefix(root).ok()?;
        (below != Path::new("") && below.components().all(plain)).then(|| below.to_owned())
    }
}

/// As with runc, which sets each kind in turn: what is private once follows nobody any more. Without any a bind follows
/// the host.
fn follows(mount: &Mount) -> Follows {
    let has = |kinds: [&str; 2]| mount.options().iter().flatten().any(|o| kinds.contains(&&**o));
    match (has(["rprivate", "runbindable"]), has(["private", "unbindable"])) {
        (true, _) => Follows::Nothing,
        (false, true) => Follows::Below,
        (false, false) => Follows::All,
    }
}

/// Whether the host sees what is mounted on a container's shared mounts: only below a root that is shared itself,
/// which engines write beside such a mount. By default the root, with all below it, is a slave of the host's.
pub(super) fn are_with_host(spec: &Spec) -> bool {
    let root = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    matches!(root, Some("shared" | "rshared"))
}

/// # Errors
/// [`Error::Unimplemented`]: what a container mounts is known to the guest's kernel alone.
fn check_propagation(mount: &Mount) -> Result<()> {
    let shared = mount.options().iter().flatten().find(|o| matches!(&***o, "shared" | "rshared"));
    let Some(option) = shared else { return Ok(()) };
    Err(Error::Unimplemented(format!(
        "config.json: the mount on {}: {option}: what a container mounts there is in its machine and can't be seen on \
         the host; with rslave or rprivate it sees what the host mounts",
        mount.destination().display()
    )))
}

/// Flags of a mount that a bind of it has, and the options that speak of each.
const INHERITED: [(&str, &[&str]); 8] = [
    ("ro", &["ro", "rw"]),
    ("nosuid", &["nosuid", "suid"]),
    ("nodev", &["nodev", "dev"]),
    ("noexec", &["noexec", "exec"]),
    ("noatime", &ATIME),
    ("nodiratime", &ATIME),
    ("relatime", &ATIME),
    (NOSYMFOLLOW, &[NOSYMFOLLOW, "symfollow"]),
];

/// Not among the flags that take a privilege to clear.
const NOSYMFOLLOW: &str = "nosymfollow";

/// When files are noted as read. That one of these is not to be so is no matter to the kernel.
const ATIME: [&str; 4] = ["noatime", "nodiratime", "relatime", "strictatime"];

/// Words on that which are no flags to have.
const NOT_ATIME: [&str; 5] = ["atime", "diratime", "norelatime", "nostrictatime", "defaults"];

/// Adds the flags of the host's mount to the options of a bind that says nothing of flags; in a user namespace
/// (`locked`) those that it says nothing of.
///
/// When files are noted as read the kernel leaves as it was unless that is spoken of, whatever else is; in a user
/// namespace it can't be changed from what the guest's own mount has.
fn inherit(options: &mut Vec<String>, of_host: &[String], locked: bool) {
    let speaks_of = |words: &[&str]| options.iter().any(|option| words.contains(&option.as_str()));
    let silent = !INHERITED.iter().any(|(_, words)| speaks_of(words)) && !speaks_of(&NOT_ATIME);
    let flags = INHERITED.iter().filter(|(flag, words)| {
        let kept = match *flag {
            _ if speaks_of(words) => false,
            _ if *words == ATIME => !locked,
            NOSYMFOLLOW => silent,
            _ => silent || locked,
        };
        kept && of_host.iter().any(|option| option == flag)
    });
    let flags: Vec<String> = flags.map(|(flag, _)| (*flag).to_owned()).collect();
    options.extend(flags);
}

/// The flags on times of access of a host's mount that a bind of a directory has in a user namespace, which can't set
/// them, where they are others than the guest's mount of it has by itself.
fn times_to_show(options: &[String], of_host: &MountOf, locked: bool) -> Vec<String> {
    let asked = options.iter().any(|option| ATIME.contains(&option.as_str()));
    if !locked || asked || of_host.directory.is_none() {
        return Vec::new();
    }
    let flags = of_host.options.iter().filter(|flag| ["noatime", "nodiratime"].contains(&&***flag));
    flags.cloned().collect()
}

/// The mappings of the user namespace that the container is to have.
pub(super) fn user_namespace(spec: &Spec) -> Option<Owners> {
    let linux = spec.linux().as_ref()?;
    linux.namespaces().iter().flatten().find(|n| n.typ() == LinuxNamespaceType::User)?;
    Some(Owners {
        users: linux.uid_mappings().clone()?,
        groups: linux.gid_mappings().clone()?,
        recursive: false,
    })
}

/// Takes the mappings out of a mount; those of the container's user namespace if it only says `idmap`.
fn owners(mount: &mut Mount, mapped: Option<&Owners>) -> Result<Option<Owners>> {
    let has = |option: &str| mount.options().iter().flatten().any(|o| o == option);
    let (plain, recursive) = (has("idmap"), has("ridmap"));
    let owners = match (mount.uid_mappings().clone(), mount.gid_mappings().clone()) {
        (Some(users), Some(groups)) => Some(Owners { users, groups, recursive }),
        (None, None) if plain || recursive => {
            mapped.cloned().map(|owners| Owners { recursive, ..owners })
        }
        (None, None) => return Ok(None),
        _ => None,
    };
    let owners = owners.filter(|owners| !owners.users.is_empty() && !owners.groups.is_empty());
    let to = mount.destination().display();
    let lacking = || {
        Error::InvalidArgument(format!("config.json: the mount on {to} lacks mappings of its ids"))
    };
    let owners = owners.ok_or_else(lacking)?;
    if let Some(options) = mount.options_mut() {
        options.retain(|option| option != "idmap" && option != "ridmap");
    }
    mount.set_uid_mappings(None).set_gid_mappings(None);
    Ok(Some(owners))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_that_says_nothing_has_the_flags_of_what_it_binds() {
        let bind = |options: &[&str], locked| {
            let mut options: Vec<String> =
                options.iter().map(|&option| option.to_owned()).collect();
            let of_host = ["ro", "nosuid", "relatime", "nosymfollow"].map(str::to_owned);
            inherit(&mut options, &of_host, locked);
            options.join(",")
        };
        assert_eq!(
            bind(&["rbind", "rprivate"], false),
            "rbind,rprivate,ro,nosuid,relatime,nosymfollow"
        );
        assert_eq!(bind(&["bind", "dev"], false), "bind,dev,relatime");
        assert_eq!(bind(&["bind", "atime"], false), "bind,atime,relatime");
        assert_eq!(bind(&["bind", "strictatime"], false), "bind,strictatime");
        assert_eq!(bind(&["bind", "dev"], true), "bind,dev,ro,nosuid");
        assert_eq!(bind(&["bind"], true), "bind,ro,nosuid,nosymfollow");
        assert_eq!(bind(&["bind", "rw", "noatime"], true), "bind,rw,noatime,nosuid");
    }
}
