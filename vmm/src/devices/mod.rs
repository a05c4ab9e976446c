//! Devices of the machine: each a front and a worker.

pub mod balloon;
pub mod blk;
pub mod build;
pub mod console;
pub mod fs;
pub mod i8042;
pub mod rng;
pub mod serial;
pub mod slots;
pub mod vsock;

use crate::virtio::RestoreError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A device's own state in a snapshot: a version, and what the device adds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned<T> {
    version: u32,
    state: T,
}

/// Version of the devices' states that this code writes and reads.
const STATE_VERSION: u32 = 1;

fn save_state<T: Serialize>(state: &T) -> serde_json::Value {
    // Fails only for maps with keys that aren't strings; no state has one.
    serde_json::to_value(Versioned { version: STATE_VERSION, state }).unwrap_or_default()
}

fn restore_state<T: DeserializeOwned>(
    device: &'static str,
    value: &serde_json::Value,
) -> Result<T, RestoreError> {
    let misfit = |reason: String| RestoreError { device, reason };
    let Versioned { version, state } =
        serde_json::from_value(value.clone()).map_err(|e| misfit(e.to_string()))?;
    if version == STATE_VERSION { Ok(state) } else { Err(misfit(format!("version {version}"))) }
}

/// Reads from a configuration space; what lies outside reads as zero.
fn read_config(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).map_or(space.len(), |o| o.min(space.len()));
    let len = data.len().min(space.len() - start);
    data[..len].copy_from_slice(&space[start..start + len]);
}
