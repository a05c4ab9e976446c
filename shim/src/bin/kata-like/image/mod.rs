//! Container images in files: an OCI layout (a directory or a tar of one) or a docker-archive.
//!
//! An image is somebody else's data. Digests are checked, numbers are bounded, and no name in it leads out
//! of the directory that it is unpacked to, see [`root`].

mod bounds;
mod layer;
mod manifest;
mod names;
mod root;
mod store;
mod trash;
mod unpack;
mod user;
mod zstd;

use anyhow::{Context, Result};
pub(crate) use bounds::Allowance;
use oci_spec::image::ImageConfiguration;
pub(crate) use root::Root;
use std::path::Path;
use store::Store;
pub(crate) use trash::Trash;
pub(crate) use user::{Account, account};

/// An image, opened; nothing of its layers has been read.
pub(crate) struct Image {
    config: ImageConfiguration,
    /// Names of the layers' blobs, lowest first, with the digests of what they hold.
    layers: Vec<(String, String)>,
    store: Store,
}

impl Image {
    /// Opens the image at `path`; `tag` chooses among several.
    pub(crate) fn open(path: &Path, tag: Option<&str>) -> Result<Self> {
        let store = Store::open(path)?;
        manifest::read(store, tag).with_context(|| format!("image {}", path.display()))
    }

    /// How to run it.
    pub(crate) fn config(&self) -> &ImageConfiguration {
        &self.config
    }

    /// Unpacks all layers to an empty directory, and leaves what they removed of each other in `trash`.
    pub(crate) fn unpack(
        &self,
        root: &Root,
        trash: &mut Trash,
        allowance: &Allowance,
    ) -> Result<()> {
        for (number, (name, diff_id)) in self.layers.iter().enumerate() {
            let blob = self.store.blob(name)?;
            layer::unpack(blob, diff_id, root, trash, allowance)
                .with_context(|| format!("layer {} ({name})", number + 1))?;
        }
        Ok(())
    }
}
