//! What a plan asks about the host, and what it is told.

use crate::host::number_list::NumberList;
use std::path::{Path, PathBuf};

/// Major and minor number of a block device.
pub type Numbers = (u32, u32);

/// What a path of the host leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Block(Numbers),
    /// Anything else, or nothing.
    Other,
}

/// What a plan asks about the host.
pub trait Host {
    /// What is there.
    fn kind(&self, path: &Path) -> Kind;
    /// Where the node of a block device is.
    fn block_device(&self, numbers: Numbers) -> Option<PathBuf>;
    /// The mount that a path is on.
    fn mount_of(&self, path: &Path) -> MountOf;
    /// What is mounted there, if that is the whole of a file system in memory.
    fn memory(&self, path: &Path) -> Option<Memory>;
    /// For a directory that is not the whole of its file system, what it is of it.
    fn part(&self, path: &Path) -> Option<Directory>;
    /// The processors that are in use.
    fn processors(&self) -> NumberList;
}

/// Of the host's mount that a path is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOf {
    /// The mount's own, not its file system's, as in fstab.
    pub options: Vec<String>,
    /// Something is mounted below the path.
    pub mounts_below: bool,
    /// The directory that the path leads to, if it is one.
    pub directory: Option<DirectoryId>,
}

/// Tells a directory from what is made, or mounted, in its place later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryId {
    /// The mount, by mountinfo.
    pub mount: u64,
    /// Its file system's device.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
}

/// A file system in the host's memory, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Bytes; 0: no limit.
    pub size: u64,
    /// Permissions of its root.
    pub mode: u32,
    /// Owner and group of its root.
    pub owner: (u32, u32),
}

/// A directory that is not the whole of its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where that is mounted whole.
    pub wholes: Vec<PathBuf>,
    /// The path from there.
    pub below: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
}
