//! Files that are there whole or not at all, whoever reads them when and whatever ends their writer.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Puts a file with these bytes in the place of what `path` leads to. Its mode is 0666 less the umask, as of any new file.
///
/// # Errors
/// The system's answer; what was there is there still, and nothing else.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A new file of a name that nobody can know: a symbolic link that waits there is not followed.
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_there_is_replaced_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("file"), directory.path().join("victim"));
        fs::write(&victim, "kept").unwrap();
        for planted in ["file", ".file", "file.new"] {
            std::os::unix::fs::symlink(&victim, directory.path().join(planted)).unwrap();
        }
        replace(&path, b"4711").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"4711");
        assert!(!path.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken");
        fs::create_dir(&taken).unwrap();
        replace(&taken, b"x").unwrap_err();
        replace(&directory.path().join("nowhere/file"), b"x").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
