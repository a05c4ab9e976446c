//! What a guest has opened without asking, as nobody else changes it: files are read without a handle, and a directory is
//! listed by one answer, which has its end.

use crate::listing::{Names, ONE_NAME, Told};
use crate::live::{LiveMounts, Node};
use crate::no_handle::UNASKED;
use std::io;
use virtiofsd::filesystem::{Context, DirectoryIterator as _, FileSystem as _};

impl LiveMounts {
    /// Does something with a file by the guest's handle, or, where it has none, by one that is closed again: an open file
    /// would keep the space of a deleted one, and its file system mounted.
    pub(crate) fn with_handle<T>(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        action: impl FnOnce(u64) -> io::Result<T>,
    ) -> io::Result<T> {
        if handle != UNASKED {
            return action(handle);
        }
        let (own, _) = self.0.open(ctx, node.inode(), false, libc::O_RDONLY as u32)?;
        let own = own.ok_or(io::ErrorKind::Unsupported)?;
        let outcome = action(own);
        self.0.release(ctx, node.inode(), 0, own, false, false, None)?;
        outcome
    }

    /// What a listing that goes on at `offset` tells, now that it is given.
    pub(crate) fn told(&self, node: Node, offset: u64) -> Told {
        if node.is_live() { Told::Names } else { self.2.lists(node.inode(), offset == 0) }
    }

    /// The names of a directory from `offset` on, for an answer of `size` bytes, with an end if these are the last ones.
    /// `Err`: they are not, or the end does not fit.
    pub(crate) fn list_to_end(
        &self,
        ctx: Context,
        node: Node,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Result<Names, Names>> {
        let names = Names::new(self.0.readdir(ctx, node.inode(), handle, size, offset)?);
        let end = names.end().unwrap_or(offset);
        let mut rest = self.0.readdir(ctx, node.inode(), handle, ONE_NAME, end)?;
        Ok(if rest.next().is_none() { names.ended(end, size as usize) } else { Err(names) })
    }
}
