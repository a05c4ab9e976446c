//! Devices of the machine: each a front and a worker.

pub mod balloon;
pub mod blk;
pub mod build;
pub mod console;
pub mod fs;
pub mod i8042;
pub mod net;
pub mod rng;
pub mod serial;
pub mod slots;
pub mod vsock;

/// Reads from a configuration space; what lies outside reads as zero.
fn read_config(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).map_or(space.len(), |o| o.min(space.len()));
    let len = data.len().min(space.len() - start);
    data[..len].copy_from_slice(&space[start..start + len]);
}
