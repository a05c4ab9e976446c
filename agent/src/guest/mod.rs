//! The guest itself: its start, its kernel's log, what it has (processors, memory, disks) and who runs in it.

pub mod boot;
pub mod busy;
pub mod capacity;
pub mod cgroup;
pub mod clock;
pub mod disks;
mod erofs;
pub mod logging;
pub mod network;
mod overlay;
mod partitions;
pub mod pod_init;
pub mod ps;
pub mod reaper;
pub mod sandbox;
mod slots;
pub mod storage;
pub mod sysctl;
mod trim;
