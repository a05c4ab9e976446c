//! From an image's index to its configuration and layers.
//!
//! OCI image layout: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.
//! A docker-archive has a `manifest.json` instead.

use super::Image;
use super::store::Store;
use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Longest index, manifest or configuration, bytes.
const MAX_JSON: u64 = 8 << 20;

/// Most indexes within each other.
const MAX_DEPTH: usize = 4;

/// Most layers of an image; overlayfs takes 500.
const MAX_LAYERS: usize = 500;

/// What the guest's kernel runs, the better first.
const ARCHITECTURES: [Arch; 2] = [Arch::Amd64, Arch::i386];

const TAG: &str = "org.opencontainers.image.ref.name";

/// An entry of a docker-archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads the manifest and the configuration; `tag` chooses among several images.
pub(super) fn read(store: Store, tag: Option<&str>) -> Result<Image> {
    let (config, blobs) = if store.has("index.json") {
        from_layout(&store, tag)?
    } else if store.has("manifest.json") {
        from_docker(&store, tag)?
    } else {
        bail!(
            "neither an OCI bundle (config.json), an OCI layout (index.json) nor a docker-archive (manifest.json)"
        );
    };
    let diff_ids = config.rootfs().diff_ids().clone();
    ensure!(blobs.len() <= MAX_LAYERS, "{} layers; at most {MAX_LAYERS}", blobs.len());
    ensure!(
        blobs.len() == diff_ids.len(),
        "{} layers, but {} digests for them in the configuration",
        blobs.len(),
        diff_ids.len()
    );
    ensure!(*config.os() == Os::Linux, "it is for {}", config.os());
    let architecture = config.architecture();
    ensure!(ARCHITECTURES.contains(architecture), "it is for {architecture}");
    Ok(Image { config, layers: blobs.into_iter().zip(diff_ids).collect(), store })
}

fn from_docker(store: &Store, tag: Option<&str>) -> Result<(ImageConfiguration, Vec<String>)> {
    let manifests: Vec<DockerManifest> = parse(&store.read("manifest.json", MAX_JSON)?)?;
    let has_tag = |manifest: &&DockerManifest| {
        let tags = manifest.repo_tags.iter().flatten();
        tag.is_none_or(|wanted| tags.into_iter().any(|tag| tag == wanted || ends_with(tag, wanted)))
    };
    let manifest = manifests.iter().find(has_tag).context("there is no image of that tag")?;
    let config = parse(&store.read(&manifest.config, MAX_JSON)?).context("its configuration")?;
    Ok((config, manifest.layers.clone()))
}

fn ends_with(tag: &str, wanted: &str) -> bool {
    tag.rsplit_once(':').is_some_and(|(_, version)| version == wanted)
}

fn from_layout(store: &Store, tag: Option<&str>) -> Result<(ImageConfiguration, Vec<String>)> {
    let mut index: ImageIndex =
        parse(&store.read("index.json", MAX_JSON)?).context("index.json")?;
    let mut tag = tag;
    for _ in 0..MAX_DEPTH {
        let chosen = choose(index.manifests(), tag)
            .context("there is no image of that tag, or for this machine")?;
        let bytes = verified(store, chosen)?;
        if chosen.media_type().to_string().contains("index") || is_index(&bytes) {
            index = parse(&bytes).context("an index")?;
            // Tags are in the outermost index.
            tag = None;
            continue;
        }
        let manifest: ImageManifest = parse(&bytes).context("the manifest")?;
        let config = parse(&verified(store, manifest.config())?).context("its configuration")?;
        let layers: Result<_> = manifest.layers().iter().map(blob_name).collect();
        return Ok((config, layers?));
    }
    bail!("indexes within indexes, more than {MAX_DEPTH} deep")
}

/// The manifest with the tag and for this machine; the first, if there is nothing to go by.
fn choose<'a>(manifests: &'a [Descriptor], tag: Option<&str>) -> Option<&'a Descriptor> {
    let has_tag = |descriptor: &Descriptor| {
        let tags = descriptor.annotations().as_ref().and_then(|annotations| annotations.get(TAG));
        tag.is_none_or(|wanted| tags.is_some_and(|tag| tag == wanted || ends_with(tag, wanted)))
    };
    let fits = |descriptor: &Descriptor, architecture: &Arch| {
        descriptor.platform().as_ref().is_none_or(|platform| {
            *platform.os() == Os::Linux && platform.architecture() == architecture
        })
    };
    ARCHITECTURES.iter().find_map(|architecture| {
        manifests.iter().find(|descriptor| has_tag(descriptor) && fits(descriptor, architecture))
    })
}

/// Docker's "manifest list" is an index by another media type.
fn is_index(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        manifests: Option<serde::de::IgnoredAny>,
    }
    parse::<Probe>(bytes).is_ok_and(|probe| probe.manifests.is_some())
}

/// A small blob, checked against its digest.
fn verified(store: &Store, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let name = blob_name(descriptor)?;
    let bytes = store.read(&name, MAX_JSON)?;
    let found = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    let expected = descriptor.digest().to_string();
    ensure!(found == expected, "{name} is damaged: its digest is {found}");
    Ok(bytes)
}

/// Where a layout keeps the blob of a digest.
fn blob_name(descriptor: &Descriptor) -> Result<String> {
    let digest = descriptor.digest().to_string();
    let hex = digest.strip_prefix("sha256:").with_context(|| format!("digest {digest:?}"))?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    ensure!(is_hex, "digest {digest:?}");
    Ok(format!("blobs/sha256/{hex}"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

/// A digest as it is written.
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;
    use std::path::Path;

    /// Adds a blob: its descriptor.
    fn blob(layout: &Path, kind: &str, content: &Value) -> Value {
        let text = content.to_string();
        let digest = hex(&Sha256::digest(&text));
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(&digest), &text).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
        let digest = format!("sha256:{digest}");
        json!({"mediaType": media_type, "digest": digest, "size": text.len()})
    }

    /// For which architecture of a layout's is chosen; in the index they are named, or not.
    fn chosen(architectures: &[&str], named: bool) -> Result<Arch> {
        let layout = tempfile::tempdir().unwrap();
        let manifests = architectures.iter().map(|architecture| {
            let config = json!({"architecture": architecture, "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": []}});
            let config = blob(layout.path(), "config", &config);
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
            let mut manifest = blob(layout.path(), "manifest", &manifest);
            if named {
                manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
            }
            manifest
        });
        let index = json!({"schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>()});
        fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        let image = read(Store::open(layout.path()).unwrap(), None)?;
        Ok(image.config.architecture().clone())
    }

    #[test]
    fn an_image_of_32_bits_is_taken_where_there_is_none_of_64() {
        assert_eq!(chosen(&["386", "arm64", "amd64"], true).unwrap(), Arch::Amd64);
        assert_eq!(chosen(&["arm64", "386"], true).unwrap(), Arch::i386);
        assert_eq!(chosen(&["386"], false).unwrap(), Arch::i386);
        let error = chosen(&["arm64"], false).unwrap_err().to_string();
        assert_eq!(error, "it is for arm64");
        assert!(chosen(&["arm64"], true).is_err());
    }
}
