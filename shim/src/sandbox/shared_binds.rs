//! Directories of the host's that several containers mount: shown once, from the first that does to the sandbox's end.

use super::Sandbox;
use crate::error::Result;
use crate::host::blocking::blocking;
use crate::host::storage;
use crate::host::undo::Undo;
use crate::oci::plan::SharedBind;

impl Sandbox {
    /// Shows those that are not shown yet.
    ///
    /// # Errors
    /// See [`storage::add_container`].
    pub(super) async fn show_to_all(&self, all: &[SharedBind]) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let mut shown = self.0.shared_binds.lock().await;
        for SharedBind { place, bind } in all {
            if shown.contains(place) {
                continue;
            }
            let (paths, id, bind) = (self.0.paths.clone(), place.clone(), bind.clone());
            let source = bind.source.clone();
            let work = move || {
                let mut undo = Undo::new();
                storage::add_container(&paths, &id, &[], &[bind], &mut undo).map(|()| undo)
            };
            let undo = blocking("mount for all containers", &source, work).await?;
            self.undo_in_the_end("show no more what all containers mount", undo);
            shown.insert(place.clone());
        }
        Ok(())
    }
}
