//! What is left to this process while a guest runs.

use crate::error::StartError;
use jail::{Capabilities, Identity, Jail, Namespaces, Root};
use protocol::machine::JailConfig;

/// Most descriptors of a VMM: its devices' and each vsock stream's.
const OPEN_FILES: u64 = 4096;

/// Confines the process for good; it has a single thread then, and opens nothing by path afterwards.
///
/// # Errors
/// [`StartError::Jail`]: the guest must not run.
pub fn enter(config: &JailConfig) -> Result<(), StartError> {
    if config.core_scheduling {
        // A host without it (no sibling threads, a kernel before 5.14) is told of by `kata-like check`.
        let _ = jail::isolate_cores();
    }
    let jail = if config.namespaces {
        Jail {
            identity: Some(Identity { uid: config.uid, gid: config.gid }),
            capabilities: Capabilities::empty(),
            root: Root::Empty,
            namespaces: Namespaces::ALL,
            open_files: Some(OPEN_FILES),
        }
    } else {
        Jail {
            identity: None,
            capabilities: Capabilities::empty(),
            root: Root::Unchanged,
            namespaces: Namespaces::NONE,
            open_files: None,
        }
    };
    jail.enter().map_err(|e| StartError::Jail(e.into()))
}
