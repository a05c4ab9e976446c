//! Where a sandbox keeps what on the host.

use crate::error::{Error, Result};
use crate::host::tree;
use std::io::ErrorKind;
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

    /// Where the mount points of [`Self::shared`] are made.
    pub fn layout(&self) -> PathBuf {
        self.root.join("layout")
    }

    /// What the file server serves.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// One container's part of [`Self::shared`].
    pub fn container(&self, id: &str) -> PathBuf {
        self.shared().join(id)
    }

    /// Files that its containers share.
    pub fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    /// The serial console's log, written by the VMM.
    pub fn console_log(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// What `delete` needs after a crash, see [`crate::host::persist`].
    pub fn state_file(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// Makes the sandbox's directory; fails if there is one.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or the system's answer.
    pub fn create(&self) -> Result<()> {
        let make = |path: &Path, recursive: bool| {
            std::fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path)
        };
        let namespace = self.namespace();
        loop {
            make(namespace, true).map_err(Error::path("make the directory", namespace))?;
            match make(&self.root, false) {
                Ok(()) => return Ok(()),
                // The last sandbox of the namespace has just taken the directory with it.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let text = format!("sandbox directory {}", self.root.display());
                    return Err(Error::AlreadyExists(text));
                }
                Err(error) => return Err(Error::path("make the directory", &self.root)(error)),
            }
        }
    }

    /// Removes the sandbox's directory with what is in it, and the namespace's if it was the last.
    ///
    /// # Errors
    /// Something is mounted below it, or the system's answer.
    pub fn remove(&self) -> std::io::Result<()> {
        tree::remove(&self.root)?;
        // Fails as it should while there are others.
        let _ = std::fs::remove_dir(self.namespace());
        Ok(())
    }

    fn namespace(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }
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
        let other = SandboxPaths::new(dir.path(), "ns", "b").unwrap();
        other.create().unwrap();
        paths.remove().unwrap();
        assert!(other.root().exists());
        other.remove().unwrap();
        assert!(!dir.path().join("ns").exists());
    }
}
