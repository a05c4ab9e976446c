//! What a sandbox has of its host: directories, mounts, disks and processes, and how they are given back.

pub(crate) mod blank_disk;
pub mod blocking;
pub mod cgroup;
pub mod descriptor;
pub(crate) mod disk;
pub mod limits;
mod mount_options;
pub(crate) mod network;
pub mod number_list;
pub mod overhead;
pub mod paths;
pub mod peer;
pub mod persist;
pub(crate) mod processors;
pub mod replace;
pub mod storage;
mod tree;
pub(crate) mod uid;
pub(crate) mod undo;
