//! Images as a registry of the distribution project keeps them on disk, and what leads containerd to it.

use crate::image;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Registries whose images the one in the lab has.
const STANDS_FOR: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// The folder that a registry has its images in.
#[derive(Debug)]
pub struct Registry {
    root: PathBuf,
}

/// An image in it: one layer over another, and what it is run as.
#[derive(Debug)]
pub struct Image<'a> {
    /// Without the registry's name.
    pub name: &'a str,
    pub tag: &'a str,
    /// Their descriptors.
    pub layers: &'a [Value],
    /// `config` of its configuration.
    pub config: Value,
}

impl Registry {
    /// The registry with this folder.
    pub fn at(dir: &Path) -> Self {
        Self { root: dir.join("docker/registry/v2") }
    }

    /// Adds a blob; its descriptor.
    pub fn add(&self, bytes: &[u8], media_type: &str) -> Result<Value> {
        let uploads = self.root.join("uploads");
        fs::create_dir_all(&uploads)?;
        let descriptor = image::write_blob(&uploads, bytes, media_type)?;
        let digest = hex(&descriptor)?;
        let blob = self.root.join("blobs/sha256").join(&digest[..2]).join(digest);
        fs::create_dir_all(&blob)?;
        fs::rename(uploads.join(digest), blob.join("data"))?;
        Ok(descriptor)
    }

    /// Adds a folder's contents as a layer; its descriptor.
    pub fn add_layer(&self, dir: &Path) -> Result<Value> {
        let archive = dir.with_extension("tar");
        image::tar(dir, &archive)?;
        self.add(&fs::read(archive)?, "application/vnd.oci.image.layer.v1.tar")
    }

    /// Adds an image of layers that were added.
    pub fn add_image(&self, image: &Image<'_>) -> Result<()> {
        let digests: Vec<_> = image.layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": image.config,
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let media_type = "application/vnd.oci.image.config.v1+json";
        let config = self.add(config.to_string().as_bytes(), media_type)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config,
            "layers": image.layers });
        let manifest = self.add(manifest.to_string().as_bytes(), media_type)?;
        let repository = self.root.join("repositories").join(image.name);
        for blob in image.layers.iter().chain([&config]) {
            link(&repository.join("_layers/sha256").join(hex(blob)?), blob)?;
        }
        let digest = hex(&manifest)?;
        let manifests = repository.join("_manifests");
        let tag = manifests.join("tags").join(image.tag);
        link(&manifests.join("revisions/sha256").join(digest), &manifest)?;
        link(&tag.join("index/sha256").join(digest), &manifest)?;
        link(&tag.join("current"), &manifest)
    }
}

fn hex(descriptor: &Value) -> Result<&str> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    digest.context("a descriptor without a digest")
}

/// Has a place in the registry's tree stand for a blob.
fn link(place: &Path, to: &Value) -> Result<()> {
    fs::create_dir_all(place)?;
    Ok(fs::write(place.join("link"), format!("sha256:{}", hex(to)?))?)
}

/// Writes for containerd which registries the one in the lab stands for.
pub fn write_mirrors(dir: &Path) -> Result<()> {
    for name in STANDS_FOR {
        let hosts = dir.join(name);
        fs::create_dir_all(&hosts)?;
        let text = "[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        fs::write(hosts.join("hosts.toml"), text)?;
    }
    Ok(())
}
