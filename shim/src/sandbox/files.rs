//! Files that the containers of a pod share: they are in the sandbox's directory on the host.

use super::spec::PodFile;
use crate::error::{Error, Result};
use crate::host::paths::SandboxPaths;
use crate::oci::pod::Part;
use oci_spec::runtime::{Linux, MountBuilder, Spec};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the one for this destination is.
fn place(paths: &SandboxPaths, destination: &Path) -> Option<PathBuf> {
    Some(paths.files().join(destination.file_name()?))
}

/// Writes them.
pub(super) fn write(paths: &SandboxPaths, files: &[PodFile]) -> Result<()> {
    let directory = paths.files();
    if !files.is_empty() {
        fs::create_dir(&directory).map_err(Error::path("make the directory", &directory))?;
    }
    for PodFile { destination, text } in files {
        let Some(file) = place(paths, destination) else { continue };
        fs::write(&file, text).map_err(Error::path("write", &file))?;
    }
    Ok(())
}

/// Adds them to the mounts of a container that is one of the pod's, but for those in whose place it has its own.
pub(super) fn show(paths: &SandboxPaths, files: &[PodFile], spec: &mut Spec) -> Result<()> {
    let part = spec.annotations().as_ref().map(Part::of).unwrap_or_default();
    if part != Part::Member {
        return Ok(());
    }
    let users = spec.linux().as_ref().and_then(|linux: &Linux| linux.uid_mappings().clone());
    let groups = spec.linux().as_ref().and_then(|linux| linux.gid_mappings().clone());
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for PodFile { destination, .. } in files {
        if mounts.iter().any(|mount| mount.destination() == destination) {
            continue;
        }
        let Some(file) = place(paths, destination) else { continue };
        let mut mount = MountBuilder::default()
            .typ("bind")
            .source(file)
            .destination(destination)
            // They are in the host's memory, which a guest shall not fill.
            .options(["rbind", "rprivate", "ro"].map(str::to_owned).to_vec())
            .build()
            .map_err(|e| Error::InvalidArgument(e.to_string()))?;
        // Its owner, root, is the container's.
        mount.set_uid_mappings(users.clone()).set_gid_mappings(groups.clone());
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(kind: &str) -> Spec {
        let text = json!({"ociVersion": "1.2.0", "root": {"path": "r"},
            "annotations": {"io.kubernetes.cri.container-type": kind},
            "mounts": [{"destination": "/etc/hosts", "type": "bind", "source": "/kubelets"}]});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_pods_containers_are_shown_its_files_where_they_have_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
        paths.create().unwrap();
        let files = ["hosts", "hostname"].map(|name| PodFile {
            destination: Path::new("/etc").join(name),
            text: name.to_uppercase(),
        });
        write(&paths, &files).unwrap();
        let shown = |mut spec: Spec| {
            show(&paths, &files, &mut spec).unwrap();
            let mounts = spec.mounts().clone().unwrap_or_default();
            mounts
                .into_iter()
                .skip(1)
                .map(|mount| {
                    let text = fs::read_to_string(mount.source().as_ref().unwrap()).unwrap();
                    (mount.destination().clone(), text, mount.options().clone().unwrap().join(","))
                })
                .collect::<Vec<_>>()
        };
        let options = "rbind,rprivate,ro".to_owned();
        let hostname = ("/etc/hostname".into(), "HOSTNAME".to_owned(), options);
        assert_eq!(shown(spec("container")), [hostname]);
        assert_eq!(shown(spec("sandbox")), []);
        paths.remove().unwrap();
    }
}
