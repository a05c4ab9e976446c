//! What is to be run: a bundle or an image.

use crate::image::Image;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use sandbox::bundle::read_spec;
use std::path::Path;

/// What is to be run.
pub(super) enum Source {
    /// A spec with the absolute path of its root file system.
    Bundle(Box<Spec>),
    Image(Box<Image>),
}

impl Source {
    /// Opens what is at the path, or, if there is nothing, at the path before a `:TAG`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if let Some(source) = Self::at(path, None)? {
            return Ok(source);
        }
        let text = path.to_string_lossy();
        if let Some((path, tag)) = text.rsplit_once(':')
            && let Some(source) = Self::at(Path::new(path), Some(tag))?
        {
            return Ok(source);
        }
        bail!(
            "there is no file or directory {text}; images are not fetched, but this writes one: \
             skopeo copy docker://docker.io/library/alpine docker-archive:alpine.tar"
        )
    }

    fn at(path: &Path, tag: Option<&str>) -> Result<Option<Self>> {
        let config = path.join("config.json");
        if config.is_file() {
            return bundle(path).map(Box::new).map(Self::Bundle).map(Some);
        }
        if !path.exists() {
            return Ok(None);
        }
        Image::open(path, tag).map(Box::new).map(Self::Image).map(Some)
    }
}

/// The spec of a bundle whose root file system is there.
pub(crate) fn bundle(directory: &Path) -> Result<Spec> {
    let mut spec = read_spec(directory)?;
    let root = spec
        .root_mut()
        .as_mut()
        .with_context(|| format!("{}: no root", directory.join("config.json").display()))?;
    // Missing, it is told before a machine is started.
    let path = root.path().canonicalize().with_context(|| root.path().display().to_string())?;
    root.set_path(path);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundles_paths_become_absolute() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("rootfs")).unwrap();
        let config = r#"{"ociVersion": "1.0.0", "root": {"path": "rootfs"}, "mounts":
            [{"destination": "/x", "source": "rootfs", "options": ["rbind"]}]}"#;
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let Ok(Source::Bundle(spec)) = Source::open(directory.path()) else { panic!() };
        let rootfs = directory.path().join("rootfs").canonicalize().unwrap();
        assert_eq!(*spec.root().as_ref().unwrap().path(), rootfs);
        let source = directory.path().join("rootfs");
        assert_eq!(spec.mounts().as_ref().unwrap()[0].source().as_ref(), Some(&source));
    }

    #[test]
    fn errors_name_the_thing() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| format!("{:#}", Source::open(path).err().unwrap());
        assert!(error(&directory.path().join("no:where")).contains("no:where"));
        assert!(error(directory.path()).contains(&directory.path().display().to_string()));
        std::fs::write(directory.path().join("config.json"), "{").unwrap();
        assert!(error(directory.path()).contains("config.json"));
    }
}
