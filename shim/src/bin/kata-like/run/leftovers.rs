//! What runs that were killed have left behind. Their processes died with them.

use super::scratch;
use crate::record::Home;
use std::path::Path;

/// Removes the containers and the runs' directories whose owners are gone. What fails is only logged: it is
/// not this run's.
pub(super) fn remove(root: &Path) {
    for home in Home::all(root).iter().filter(|home| home.is_abandoned()) {
        if let Err(error) = home.remove(true) {
            tracing::warn!("left over from an earlier run: {error:#}");
        }
    }
    if let Err(error) = scratch::remove_abandoned() {
        tracing::warn!("left over from an earlier run: {error:#}");
    }
}
