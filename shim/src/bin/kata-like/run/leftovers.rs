//! What runs that were killed have left behind. Their processes died with them.

use super::{NAMESPACE, scratch};
use sandbox::paths::SandboxPaths;
use sandbox::persist::{self, SandboxState};
use std::path::Path;
use std::time::Duration;

/// How long a process of theirs that lives all the same may take to die.
const PATIENCE: Duration = Duration::from_secs(2);

/// Removes the sandboxes' and the runs' directories whose owners are gone. What fails is only logged: it is
/// not this run's.
pub(super) fn remove(state: &Path) {
    for id in ids(state) {
        if let Ok(paths) = SandboxPaths::new(state, NAMESPACE, &id)
            && is_abandoned(&paths)
            && let Err(error) = persist::clean_up(&paths, PATIENCE)
        {
            tracing::warn!("left over from an earlier run: {}", error.chain());
        }
    }
    if let Err(error) = scratch::remove_abandoned() {
        tracing::warn!("left over from an earlier run: {error:#}");
    }
}

fn ids(state: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(state.join(NAMESPACE)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// One that has written its state and whose process is no more. One without a state is just being made.
fn is_abandoned(paths: &SandboxPaths) -> bool {
    matches!(SandboxState::read(paths), Ok(Some(state)) if !state.owner.lives())
}
