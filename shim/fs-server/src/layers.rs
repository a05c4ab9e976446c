//! What lies below a container's own disk: root file systems to which nobody writes while their guest runs.
//!
//! Nothing there changes, so the guest asks for each thing once. It does not say what it opens and closes (FUSE's
//! `no_open`), which would be two requests each time a program is started or a library loaded; so what it reads is opened
//! here when it is asked for, and stays open while there are not too many. It mounts this read-only: what changes files is
//! not there.

use crate::live::{LiveMounts, Node};
use crate::no_handle::UNASKED;
use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use virtiofsd::filesystem::{
    Context, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    ZeroCopyWriter,
};
use virtiofsd::fuse::Attr;
use virtiofsd::passthrough::PassthroughFs;

/// Most files and directories that are kept open.
const MOST_OPEN: usize = 256;

/// What is open, by the file, and when it was used last.
#[derive(Default)]
struct Opened {
    handles: HashMap<u64, Handle>,
    uses: u64,
}

struct Handle {
    number: u64,
    used: u64,
}

impl Opened {
    /// Its handle, if it is open.
    fn find(&mut self, inode: u64) -> Option<u64> {
        self.uses += 1;
        let handle = self.handles.get_mut(&inode)?;
        handle.used = self.uses;
        Some(handle.number)
    }

    /// Keeps a file open; gives what is to be closed for it: that which was used the longest time ago.
    fn keep(&mut self, inode: u64, number: u64) -> Option<(u64, u64)> {
        let oldest = (self.handles.len() >= MOST_OPEN)
            .then(|| self.handles.iter().min_by_key(|(_, handle)| handle.used))
            .flatten()
            .map(|(&inode, _)| inode);
        let closed = oldest.and_then(|inode| Some((inode, self.handles.remove(&inode)?.number)));
        self.handles.insert(inode, Handle { number, used: self.uses });
        closed
    }
}

/// The same tree as [`LiveMounts`], to be mounted read-only; clones are the same one.
#[derive(Clone)]
pub struct Layers {
    tree: LiveMounts,
    opened: Arc<Mutex<Opened>>,
}

impl Layers {
    pub(crate) fn new(tree: LiveMounts) -> Self {
        Self { tree, opened: Arc::default() }
    }

    fn files(&self) -> &PassthroughFs {
        &self.tree.0
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle by which a file, or a directory, is read.
    fn handle(&self, ctx: Context, node: Node, flags: i32) -> io::Result<u64> {
        let inode = node.inode();
        if let Some(number) = self.opened().find(inode) {
            return Ok(number);
        }
        let (number, _) = self.files().open(ctx, inode, false, flags as u32)?;
        let number = number.ok_or(io::ErrorKind::Unsupported)?;
        if let Some((inode, number)) = self.opened().keep(inode, number) {
            self.close(ctx, inode, number);
        }
        Ok(number)
    }

    fn close(&self, ctx: Context, inode: u64, number: u64) {
        // The guest may have made it up, and it is gone either way.
        let _ = self.files().release(ctx, inode, 0, number, false, false, None);
    }

    /// Closes what the guest does not know any more, so that its file system can be unmounted.
    fn let_go(&self, ctx: Context, node: Node) {
        let handle = self.opened().handles.remove(&node.inode());
        if let Some(Handle { number, .. }) = handle {
            self.close(ctx, node.inode(), number);
        }
    }
}

/// "Do not ask again": whatever file it was about.
fn never<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

impl FileSystem for Layers {
    type Inode = Node;
    type Handle = u64;
    type DirIter = <LiveMounts as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // The guest always asks for all with the names: what it is told is decided here (`listing`).
        Ok(self.tree.init(capable)? - FsOptions::READDIRPLUS_AUTO)
    }

    fn destroy(&self) {
        *self.opened() = Opened::default();
        self.tree.destroy();
    }

    fn lookup(&self, ctx: Context, parent: Node, name: &CStr) -> io::Result<Entry> {
        self.tree.lookup(ctx, parent, name)
    }

    fn forget(&self, ctx: Context, node: Node, count: u64) {
        self.let_go(ctx, node);
        self.tree.forget(ctx, node, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Node, u64)>) {
        for (node, _) in &requests {
            self.let_go(ctx, *node);
        }
        self.tree.batch_forget(ctx, requests);
    }

    fn getattr(
        &self,
        ctx: Context,
        node: Node,
        _handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
        self.tree.getattr(ctx, node, None)
    }

    fn statfs(&self, ctx: Context, node: Node) -> io::Result<libc::statvfs64> {
        self.tree.statfs(ctx, node)
    }

    fn readlink(&self, ctx: Context, node: Node) -> io::Result<Vec<u8>> {
        self.tree.readlink(ctx, node)
    }

    fn access(&self, ctx: Context, node: Node, mask: u32) -> io::Result<()> {
        self.tree.access(ctx, node, mask)
    }

    /// Attributes in `trusted.` this process may not see, and an overlay would ask each file for one.
    fn getxattr(
        &self,
        ctx: Context,
        node: Node,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if name.to_bytes().starts_with(b"trusted.") {
            return never();
        }
        self.tree.getxattr(ctx, node, name, size)
    }

    fn listxattr(&self, ctx: Context, node: Node, size: u32) -> io::Result<ListxattrReply> {
        self.tree.listxattr(ctx, node, size)
    }

    fn open(&self, _: Context, _: Node, _: bool, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        never()
    }

    fn opendir(&self, _: Context, _: Node, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        never()
    }

    fn flush(&self, _: Context, _: Node, _: u64, _: u64) -> io::Result<()> {
        never()
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        node: Node,
        _handle: u64,
        to: W,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handle(ctx, node, libc::O_RDONLY)?;
        self.tree.read(ctx, node, handle, to, size, offset, owner, flags)
    }

    fn readdir(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        let own = self.handle(ctx, node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        if handle != UNASKED {
            return self.tree.readdir(ctx, node, own, size, offset);
        }
        let names = self.tree.list_to_end(ctx, node, own, size, offset)?;
        let names = names.unwrap_or_else(|part| part);
        Ok(names.telling(self.tree.told(node, offset)))
    }

    fn lseek(
        &self,
        ctx: Context,
        node: Node,
        _handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handle(ctx, node, libc::O_RDONLY)?;
        self.tree.lseek(ctx, node, handle, offset, whence)
    }
}
