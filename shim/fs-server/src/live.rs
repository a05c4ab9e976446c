//! Bind mounts are live: of what lies below `<container>/mounts` the guest takes nothing for granted and keeps
//! nothing, so its next look sees what the host did. The rest is a container's own and cached, also that a name is not
//! there, for as long as [`Roots`] says.
//!
//! Where a file lies is marked in the number by which the guest names it, so there is nothing to remember. A
//! guest that makes up marks changes what its own kernel caches, nothing else.

use crate::listing::{self, Habit, Names, ONE_NAME};
use crate::no_handle::UNASKED;
use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr, ROOT_ID, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

/// Marks a child of the root: a container's directory.
const CONTAINER: u64 = 1 << 62;

/// Marks what lies below a container's `mounts`.
const LIVE: u64 = 1 << 63;

/// In a file's attributes: its guest may keep for a while what is written to it, as it counts its size and times itself
/// (`FUSE_ATTR_WRITES_BACK`, which our kernel has for it; to others it says nothing). Unlike FUSE's own word for that it
/// does not speak of all files.
const ATTR_WRITES_BACK: u32 = 1 << 31;

/// Nobody changes it but its guest, which so need not ask to open it for reading (`FUSE_ATTR_EXCLUSIVE`, of our kernel).
const ATTR_EXCLUSIVE: u32 = 1 << 30;

/// How long the guest knows the way to a container's root: while it makes the container it goes there dozens of times.
const OF_ONE_MAKING: Duration = Duration::from_millis(200);

/// A file's number as the guest knows it: virtiofsd's, which counts up from 1, and a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node(u64);

impl From<u64> for Node {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<Node> for u64 {
    fn from(node: Node) -> Self {
        node.0
    }
}

impl Node {
    /// virtiofsd's number.
    pub(crate) fn inode(self) -> u64 {
        self.0 & !(CONTAINER | LIVE)
    }

    pub(crate) fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }

    /// The mark of what has this name in this directory.
    fn mark_of(self, name: &CStr) -> u64 {
        match self.0 {
            ROOT_ID => CONTAINER,
            node if node & CONTAINER != 0 && name == c"mounts" => LIVE,
            node => node & LIVE,
        }
    }

    /// The answer about what has this name in this directory.
    fn entry(self, name: &CStr, mut entry: Entry, roots: Roots) -> Entry {
        entry.inode |= self.mark_of(name);
        // What else the host has mounted in a root is not the guest's alone.
        if self.is_in_root() && entry.attr.flags & ATTR_SUBMOUNT != 0 {
            entry.inode |= LIVE;
        }
        let node = Self(entry.inode);
        if node.is_live() {
            entry.entry_timeout = Duration::ZERO;
        } else if !self.is_in_root() {
            entry.entry_timeout = entry.entry_timeout.min(OF_ONE_MAKING);
        }
        if !node.is_in_root() {
            entry.attr_timeout = Duration::ZERO;
        } else if roots == Roots::Guests {
            entry.attr.flags |= ATTR_WRITES_BACK | ATTR_EXCLUSIVE;
        }
        entry
    }

    fn attributes(self, (attr, validity): (Attr, Duration)) -> (Attr, Duration) {
        (attr, if self.is_in_root() { validity } else { Duration::ZERO })
    }

    /// Pages of a live file are not even kept for those who hold it open: its time of change, by which the
    /// guest would tell that they are old, is no finer than the host's clock tick.
    fn options(self, cached: OpenOptions, live: OpenOptions) -> OpenOptions {
        if self.is_live() { live } else { cached }
    }

    /// Whether it is a root file system, or in one. A container's directories are the shim's: the next container of
    /// this id has others.
    fn is_in_root(self) -> bool {
        self.0 & (CONTAINER | LIVE) == 0 && self.0 != ROOT_ID
    }
}

/// Who changes the containers' root file systems while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roots {
    /// Their guest alone: what it knows stays true.
    Guests,
    /// Others as well: what the guest knows is true for a second.
    Shared,
}

impl Roots {
    /// How long the guest takes names and attributes for granted.
    pub(crate) fn validity(self) -> Duration {
        match self {
            // Of no guest's life the end, and no number that overflows in its kernel.
            Self::Guests => Duration::from_secs(1 << 30),
            Self::Shared => Duration::from_secs(1),
        }
    }
}

impl Roots {
    /// How files are opened there. When one is closed its guest has nothing to say: it has written what was changed.
    fn opened(self, cached: OpenOptions) -> OpenOptions {
        if self == Self::Guests { cached | OpenOptions::NOFLUSH } else { cached }
    }

    /// With which flags of open(2) to open a file. Of one that is written back the guest's kernel says where a write goes,
    /// and reads what surrounds it, and when it is to be on the disk, whoever has opened it how.
    fn flags(self, node: Node, flags: u32) -> u32 {
        let [mode, write, both, append, sync] =
            [libc::O_ACCMODE, libc::O_WRONLY, libc::O_RDWR, libc::O_APPEND, libc::O_SYNC]
                .map(|flag| flag as u32);
        if self != Self::Guests || !node.is_in_root() {
            return flags;
        }
        // What is to be on the disk the guest's kernel asks for after the write: that waits on a thread of its own.
        let flags = flags & !append & !sync;
        if flags & mode == write { flags & !mode | both } else { flags }
    }
}

/// virtiofsd's file system, with live bind mounts; clones are the same one.
#[derive(Clone)]
pub struct LiveMounts(pub(crate) Arc<PassthroughFs>, pub(crate) Roots, pub(crate) Arc<Habit>);

/// The answer about a name that is not there, by which the guest remembers that; in a listing it says nothing.
fn absent(validity: Duration) -> Entry {
    let (inode, attr) = (0, Attr::default());
    Entry { inode, generation: 0, attr, attr_timeout: validity, entry_timeout: validity }
}

/// An offset that a file can have; virtiofsd panics at others.
fn in_a_file(offset: u64) -> io::Result<u64> {
    let fits = i64::try_from(offset).is_ok();
    if fits { Ok(offset) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// Methods that concern one file and say nothing that the guest may cache.
macro_rules! forward {
    ($(fn $name:ident$(<$kind:ident: $bound:ident>)?($($arg:ident: $type:ty),*) -> $answer:ty;)+) => {$(
        fn $name$(<$kind: $bound>)?(&self, ctx: Context, node: Node, $($arg: $type),*) -> io::Result<$answer> {
            self.0.$name(ctx, node.inode(), $($arg),*)
        }
    )+};
}

/// Methods that make something in a directory.
macro_rules! forward_making {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)+) => {$(
        fn $name(&self, ctx: Context, parent: Node, name: &CStr, $($arg: $type),*) -> io::Result<Entry> {
            let made = self.0.$name(ctx, parent.inode(), name, $($arg),*)?;
            Ok(parent.entry(name, made, self.1))
        }
    )+};
}

impl FileSystem for LiveMounts {
    type Inode = Node;
    type Handle = u64;
    type DirIter = Names;

    forward! {
        fn statfs() -> libc::statvfs64;
        fn readlink() -> Vec<u8>;
        fn access(mask: u32) -> ();
        fn unlink(name: &CStr) -> ();
        fn rmdir(name: &CStr) -> ();
        fn releasedir(flags: u32, handle: u64) -> ();
        fn flush(handle: u64, owner: u64) -> ();
        fn syncfs() -> ();
        fn fallocate(handle: u64, mode: u32, offset: u64, length: u64) -> ();
        fn release(flags: u32, handle: u64, flush: bool, unlock: bool, owner: Option<u64>) -> ();
        fn setxattr(name: &CStr, value: &[u8], flags: u32, more: SetxattrFlags) -> ();
        fn getxattr(name: &CStr, size: u32) -> GetxattrReply;
        fn listxattr(size: u32) -> ListxattrReply;
        fn removexattr(name: &CStr) -> ();
    }

    fn lookup(&self, ctx: Context, parent: Node, name: &CStr) -> io::Result<Entry> {
        if listing::is_left_out() {
            // The end of a listing is no file.
            if !name.is_empty() {
                self.2.left_out(parent.inode());
            }
            return Ok(absent(Duration::ZERO));
        }
        match self.0.lookup(ctx, parent.inode(), name) {
            Ok(entry) => {
                if entry.attr.mode & libc::S_IFMT != libc::S_IFDIR {
                    self.2.looked_at(parent.inode());
                }
                Ok(parent.entry(name, entry, self.1))
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ENOENT)
                    && self.1 == Roots::Guests
                    && parent.is_in_root() =>
            {
                Ok(absent(self.1.validity()))
            }
            Err(error) => Err(error),
        }
    }

    fn readdir(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        let names = if handle == UNASKED {
            let all = |own| self.list_to_end(ctx, node, own, size, offset);
            let names = self.with_handle(ctx, node, handle, all)?;
            names.map_err(|_part| io::Error::from_raw_os_error(libc::E2BIG))?
        } else {
            Names::new(self.0.readdir(ctx, node.inode(), handle, size, offset)?)
        };
        Ok(names.telling(self.told(node, offset)))
    }

    forward_making! {
        fn mkdir(mode: u32, umask: u32, extensions: Extensions);
        fn mknod(mode: u32, device: u32, umask: u32, extensions: Extensions);
    }

    fn fsync(&self, ctx: Context, node: Node, datasync: bool, handle: u64) -> io::Result<()> {
        self.with_handle(ctx, node, handle, |handle| {
            self.0.fsync(ctx, node.inode(), datasync, handle)
        })
    }

    fn fsyncdir(&self, ctx: Context, node: Node, datasync: bool, handle: u64) -> io::Result<()> {
        self.with_handle(ctx, node, handle, |handle| {
            self.0.fsyncdir(ctx, node.inode(), datasync, handle)
        })
    }

    fn lseek(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.with_handle(ctx, node, handle, |handle| {
            self.0.lseek(ctx, node.inode(), handle, offset, whence)
        })
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        to: W,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let offset = in_a_file(offset)?;
        self.with_handle(ctx, node, handle, |handle| {
            self.0.read(ctx, node.inode(), handle, to, size, offset, owner, flags)
        })
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        from: R,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let (inode, offset) = (node.inode(), in_a_file(offset)?);
        // The guest says where it goes, also where the file's end on the host is not yet that of the guest's.
        let flags = self.1.flags(node, flags);
        self.0.write(ctx, inode, handle, from, size, offset, owner, delayed, kill_priv, flags)
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // What a symbolic link says never changes, but in file systems of the kernel's that no image has: another is
        // another file, which has another number.
        Ok(self.0.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        self.0.destroy();
    }

    fn forget(&self, ctx: Context, node: Node, count: u64) {
        self.0.forget(ctx, node.inode(), count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Node, u64)>) {
        let requests = requests.into_iter().map(|(node, count)| (node.inode(), count));
        self.0.batch_forget(ctx, requests.collect());
    }

    fn getattr(
        &self,
        ctx: Context,
        node: Node,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
        Ok(node.attributes(self.0.getattr(ctx, node.inode(), handle)?))
    }

    fn setattr(
        &self,
        ctx: Context,
        node: Node,
        attr: SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        let handle = handle.filter(|handle| *handle != UNASKED);
        Ok(node.attributes(self.0.setattr(ctx, node.inode(), attr, handle, valid)?))
    }

    fn symlink(
        &self,
        ctx: Context,
        target: &CStr,
        parent: Node,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let made = self.0.symlink(ctx, target, parent.inode(), name, extensions)?;
        Ok(parent.entry(name, made, self.1))
    }

    fn link(&self, ctx: Context, node: Node, parent: Node, name: &CStr) -> io::Result<Entry> {
        let linked = self.0.link(ctx, node.inode(), parent.inode(), name)?;
        Ok(parent.entry(name, linked, self.1))
    }

    fn rename(
        &self,
        ctx: Context,
        from: Node,
        name: &CStr,
        to: Node,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.0.rename(ctx, from.inode(), name, to.inode(), new_name, flags)
    }

    fn open(
        &self,
        ctx: Context,
        node: Node,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let flags = self.1.flags(node, flags);
        let (handle, options) = self.0.open(ctx, node.inode(), kill_priv, flags)?;
        Ok((handle, node.options(self.1.opened(options), OpenOptions::DIRECT_IO)))
    }

    fn opendir(
        &self,
        ctx: Context,
        node: Node,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, options) = self.0.opendir(ctx, node.inode(), flags)?;
        if let Some(handle) = handle.filter(|_| node.is_in_root()) {
            // An overlay knows by its handle what was there when it was first read, which is now: the guest may have the
            // first names by an answer without one.
            let _ = self.0.readdir(ctx, node.inode(), handle, ONE_NAME, 0);
        }
        Ok((handle, node.options(options, OpenOptions::empty())))
    }

    fn create(
        &self,
        ctx: Context,
        parent: Node,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        let (dir, flags) = (parent.inode(), self.1.flags(parent, flags));
        let (entry, handle, options) =
            self.0.create(ctx, dir, name, mode, kill_priv, flags, umask, extensions)?;
        let entry = parent.entry(name, entry, self.1);
        let options = Node(entry.inode).options(self.1.opened(options), OpenOptions::DIRECT_IO);
        Ok((entry, handle, options))
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        from: Node,
        from_handle: u64,
        from_offset: u64,
        to: Node,
        to_handle: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
    ) -> io::Result<usize> {
        let to = (to.inode(), to_handle, to_offset);
        self.with_handle(ctx, from, from_handle, |handle| {
            let from = (from.inode(), handle, from_offset);
            self.0.copyfilerange(ctx, from.0, from.1, from.2, to.0, to.1, to.2, length, flags)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtiofsd::filesystem::DirectoryIterator as _;
    use virtiofsd::passthrough::Config;

    /// The owner of the files: nobody's identity has to be taken on.
    fn owner() -> Context {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Context { uid: uid.into(), gid: gid.into(), pid: 0 }
    }

    /// A shared directory with a container in it, and the file system that serves it.
    fn shared() -> (tempfile::TempDir, LiveMounts) {
        shared_as(Roots::Guests)
    }

    fn shared_as(roots: Roots) -> (tempfile::TempDir, LiveMounts) {
        let dir = tempfile::tempdir().unwrap();
        for path in ["c1/rootfs/mounts", "c1/mounts/0/rootfs"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
            std::fs::write(dir.path().join(path).join("file"), "text").unwrap();
        }
        let files = PassthroughFs::new(Config {
            root_dir: dir.path().to_str().unwrap().to_owned(),
            entry_timeout: roots.validity(),
            attr_timeout: roots.validity(),
            cache_policy: virtiofsd::passthrough::CachePolicy::Always,
            ..Config::default()
        });
        let files = LiveMounts(Arc::new(files.unwrap()), roots, Arc::default());
        files.init(FsOptions::empty()).unwrap();
        (dir, files)
    }

    fn find(files: &LiveMounts, path: &[&CStr]) -> Entry {
        let mut entry = files.lookup(owner(), Node(ROOT_ID), path[0]).unwrap();
        for name in &path[1..] {
            entry = files.lookup(owner(), Node(entry.inode), name).unwrap();
        }
        entry
    }

    fn validity(entry: &Entry) -> (Duration, Duration) {
        (entry.entry_timeout, entry.attr_timeout)
    }

    #[test]
    fn nothing_below_a_bind_mount_is_taken_for_granted() {
        let (_dir, files) = shared();
        for path in [&[c"c1", c"mounts", c"0"][..], &[c"c1", c"mounts", c"0", c"rootfs", c"file"]] {
            let entry = find(&files, path);
            assert_eq!(validity(&entry), (Duration::ZERO, Duration::ZERO), "{path:?}");
            let node = Node(entry.inode);
            assert_eq!(files.getattr(owner(), node, None).unwrap().1, Duration::ZERO);
        }
    }

    #[test]
    fn a_root_file_system_is_cached_whatever_its_directories_are_called() {
        let (_dir, files) = shared();
        let entry = find(&files, &[c"c1", c"rootfs", c"mounts", c"file"]);
        let long = Roots::Guests.validity();
        assert_eq!(validity(&entry), (long, long));
        let node = Node(entry.inode);
        assert_eq!(files.getattr(owner(), node, None).unwrap().1, long);
        let (_, options) = files.open(owner(), node, false, 0).unwrap();
        assert_eq!(options, OpenOptions::KEEP_CACHE | OpenOptions::NOFLUSH);
    }

    #[test]
    fn what_the_host_has_mounted_in_a_root_file_system_is_live() {
        let (_dir, files) = shared();
        let root = Node(find(&files, &[c"c1", c"rootfs"]).inode);
        for (flags, live) in [(0, false), (ATTR_SUBMOUNT, true)] {
            let mut found = find(&files, &[c"c1", c"rootfs", c"mounts"]);
            found.attr.flags = flags;
            let entry = root.entry(c"mounts", found, Roots::Guests);
            assert_eq!(Node(entry.inode).is_live(), live);
            assert_eq!(entry.attr.flags & ATTR_WRITES_BACK == 0, live);
            assert_eq!(validity(&entry).1 == Duration::ZERO, live);
        }
    }

    #[test]
    fn a_root_file_system_is_written_back_by_its_guest_where_it_is_its_alone() {
        let written_back = |files: &LiveMounts, path: &[&CStr]| {
            let flags = find(files, path).attr.flags;
            assert_eq!(flags & ATTR_WRITES_BACK != 0, flags & ATTR_EXCLUSIVE != 0);
            flags & ATTR_WRITES_BACK != 0
        };
        let (_dir, files) = shared();
        assert!(written_back(&files, &[c"c1", c"rootfs", c"mounts", c"file"]));
        assert!(!written_back(&files, &[c"c1", c"mounts", c"0", c"rootfs", c"file"]));
        let root = Node(find(&files, &[c"c1", c"rootfs"]).inode);
        let volume = Node(find(&files, &[c"c1", c"mounts", c"0"]).inode);
        for (directory, own) in [(root, true), (volume, false)] {
            let rights = libc::O_RDWR as u32;
            let (made, ..) = files
                .create(owner(), directory, c"made", 0o600, false, rights, 0, Extensions::default())
                .unwrap();
            assert_eq!(made.attr.flags & ATTR_WRITES_BACK != 0, own);
        }
        let (_dir, files) = shared_as(Roots::Shared);
        assert!(!written_back(&files, &[c"c1", c"rootfs", c"mounts", c"file"]));
    }

    #[test]
    fn what_is_written_back_is_read_and_goes_where_the_guest_says() {
        let [read, write, both, append, truncate] =
            [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_APPEND, libc::O_TRUNC]
                .map(|flag| flag as u32);
        let (own, live) = (Node(7), Node(7 | LIVE));
        for (asked, opened) in [
            (write | append | truncate, both | truncate),
            (both | append, both),
            (both | libc::O_SYNC as u32, both),
            (write | libc::O_DSYNC as u32, both),
            (read, read),
            (read | append, read),
        ] {
            assert_eq!(Roots::Guests.flags(own, asked), opened);
            assert_eq!(Roots::Guests.flags(live, asked), asked);
            assert_eq!(Roots::Shared.flags(own, asked), asked);
        }
    }

    #[test]
    fn the_next_container_of_an_id_is_found() {
        let (_dir, files) = shared();
        for path in [&[c"c1"][..], &[c"c1", c"rootfs"]] {
            assert_eq!(validity(&find(&files, path)).0, OF_ONE_MAKING, "{path:?}");
        }
        // What the root directory itself is like does not change.
        let root = find(&files, &[c"c1", c"rootfs"]);
        assert_eq!(validity(&root).1, Roots::Guests.validity());
    }

    #[test]
    fn what_is_not_there_is_remembered_where_the_guest_alone_makes_files() {
        let missing = |files: &LiveMounts, path: &[&CStr]| {
            let parent = path.split_last().map_or(ROOT_ID, |(last, before)| {
                let entry = find(files, &[before, &[last]].concat());
                entry.inode
            });
            files.lookup(owner(), Node(parent), c"none")
        };
        let (_dir, files) = shared();
        for path in [&[c"c1", c"rootfs"][..], &[c"c1", c"rootfs", c"mounts"]] {
            let entry = missing(&files, path).unwrap();
            assert_eq!((entry.inode, validity(&entry).0), (0, Roots::Guests.validity()));
        }
        // The shim's directories, and binds of the host's.
        for path in [&[][..], &[c"c1"], &[c"c1", c"mounts"], &[c"c1", c"mounts", c"0"]] {
            let error = missing(&files, path).err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{path:?}");
        }
        let (_dir, files) = shared_as(Roots::Shared);
        assert!(missing(&files, &[c"c1", c"rootfs"]).is_err());
        let entry = find(&files, &[c"c1", c"rootfs"]);
        assert_eq!(validity(&entry).1, Duration::from_secs(1));
    }

    #[test]
    fn pages_and_lists_of_a_live_file_are_not_kept() {
        let (_dir, files) = shared();
        let directory = Node(find(&files, &[c"c1", c"mounts", c"0", c"rootfs"]).inode);
        let (_, options) = files.opendir(owner(), directory, 0).unwrap();
        assert_eq!(options, OpenOptions::empty());
        let file = Node(files.lookup(owner(), directory, c"file").unwrap().inode);
        let (_, options) = files.open(owner(), file, false, 0).unwrap();
        assert_eq!(options, OpenOptions::DIRECT_IO);
    }

    /// The names of a directory, and whether each is told with its node, as virtiofsd's server asks for them.
    fn listed(files: &LiveMounts, directory: Node) -> Vec<(String, bool)> {
        let (handle, _) = files.opendir(owner(), directory, 0).unwrap();
        let mut names = files.readdir(owner(), directory, handle.unwrap(), 4096, 0).unwrap();
        let mut listed = Vec::new();
        while let Some(entry) = names.next() {
            let name = entry.name.to_owned();
            if !name.to_bytes().starts_with(b".") {
                let told = files.lookup(owner(), directory, &name).unwrap().inode != 0;
                listed.push((name.into_string().unwrap(), told));
            }
        }
        drop(names);
        files.releasedir(owner(), directory, 0, handle.unwrap()).unwrap();
        listed.sort();
        listed
    }

    #[test]
    fn a_list_says_of_files_what_is_looked_at() {
        let (dir, files) = shared();
        let [root, volume] = ["c1/rootfs", "c1/mounts/0/rootfs"].map(|path| dir.path().join(path));
        std::fs::create_dir(volume.join("mounts")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        std::fs::write(root.join("more"), "").unwrap();
        std::fs::write(volume.join("more"), "").unwrap();
        let shown = |told: [bool; 3]| {
            ["file", "more", "mounts"].map(str::to_owned).into_iter().zip(told).collect::<Vec<_>>()
        };
        let root = Node(find(&files, &[c"c1", c"rootfs"]).inode);
        let volume = Node(find(&files, &[c"c1", c"mounts", c"0", c"rootfs"]).inode);
        for _ in 0..2 {
            assert_eq!(listed(&files, root), shown([false, false, true]));
            assert_eq!(listed(&files, volume), shown([false; 3]));
        }
        let asked = [c"file", c"more"].map(|name| files.lookup(owner(), root, name).unwrap().inode);
        assert!(asked.iter().all(|node| *node != 0), "left out of a list is not absent");
        assert_eq!(listed(&files, root), shown([true; 3]));
        assert_eq!(listed(&files, volume), shown([false; 3]));
    }

    #[test]
    fn what_is_made_below_a_bind_mount_is_live() {
        let (_dir, files) = shared();
        let volume = Node(find(&files, &[c"c1", c"mounts", c"0"]).inode);
        let none = Extensions::default;
        let (file, _, options) = files
            .create(owner(), volume, c"new", 0o600, false, libc::O_RDWR as u32, 0, none())
            .unwrap();
        assert_eq!(options, OpenOptions::DIRECT_IO);
        let made = [
            files.mkdir(owner(), volume, c"dir", 0o700, 0, none()).unwrap(),
            files.mknod(owner(), volume, c"fifo", libc::S_IFIFO | 0o600, 0, 0, none()).unwrap(),
            files.symlink(owner(), c"new", volume, c"symlink", none()).unwrap(),
            files.link(owner(), Node(file.inode), volume, c"link").unwrap(),
            file,
        ];
        assert!(made.iter().all(|entry| validity(entry) == (Duration::ZERO, Duration::ZERO)));
    }

    #[test]
    fn a_file_is_forgotten_by_the_number_the_guest_knows_it_by() {
        let (_dir, files) = shared();
        let path = [c"c1", c"mounts", c"0", c"rootfs", c"file"];
        let (node, again) = (find(&files, &path).inode.into(), find(&files, &path).inode);
        assert_eq!(node, Node(again));
        files.forget(owner(), node, 1);
        assert!(files.getattr(owner(), node, None).is_ok());
        files.batch_forget(owner(), vec![(node, 1)]);
        assert!(files.getattr(owner(), node, None).is_err());
    }
}
