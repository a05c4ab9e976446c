//! Where a sandbox keeps what on the host, and what the guest calls it.

use crate::error::{Error, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The directories and files of one sandbox: `<state>/<namespace>/<sandbox id>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    root: PathBuf,
}

impl SandboxPaths {
    /// Names them; touches nothing.
    ///
    /// # Errors
    /// `namespace` or `id` can't be a file name.
    pub fn new(state: &Path, namespace: &str, id: &str) -> Result<Self> {
        for name in [namespace, id] {
            protocol::ids::check(name).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        }
        Ok(Self { root: state.join(namespace).join(id) })
    }

    /// The sandbox's own directory, 0700.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the file server serves.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// One container's part of [`Self::shared`].
    pub fn container(&self, id: &str) -> PathBuf {
        self.shared().join(id)
    }

    /// The serial console's log, written by the VMM.
    pub fn console_log(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// What `delete` needs after a crash, see [`crate::persist`].
    pub fn state_file(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// Makes the sandbox's directory; fails if there is one.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or the system's answer.
    pub fn create(&self) -> Result<()> {
        let builder = |recursive| {
            let mut builder = std::fs::DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        if let Some(parent) = self.root.parent() {
            builder(true).create(parent).map_err(Error::path("make the directory", parent))?;
        }
        builder(false).create(&self.root).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::AlreadyExists(format!("sandbox directory {}", self.root.display()))
            }
            _ => Error::path("make the directory", &self.root)(error),
        })
    }
}

/// Where the guest finds a container's root file system.
pub fn guest_rootfs(container: &str) -> PathBuf {
    guest_container(container).join("rootfs")
}

/// Where the guest finds the source of a container's bind mount number `index`.
pub fn guest_bind(container: &str, index: usize) -> PathBuf {
    guest_container(container).join("mounts").join(index.to_string())
}

fn guest_container(container: &str) -> PathBuf {
    Path::new(protocol::ports::SHARED_DIR).join(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_leave_the_directory_are_refused() {
        for (namespace, id) in [("default", ".."), ("..", "a"), ("a/b", "c"), ("", "a")] {
            assert!(SandboxPaths::new(Path::new("/run/x"), namespace, id).is_err());
        }
    }

    #[test]
    fn two_sandboxes_of_one_id_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
        paths.create().unwrap();
        assert!(matches!(paths.create(), Err(Error::AlreadyExists(_))));
    }
}
