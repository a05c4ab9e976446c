//! Where an image's blobs are: files of a directory, or parts of a tar file.

use super::bounds::HeaderLimit;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Most entries of an image in a tar file: its blobs and a few more.
const MAX_ENTRIES: usize = 10_000;

/// Most links from one name to another on the way to a blob.
const MAX_LINKS: usize = 8;

/// The files of an image by name.
pub(super) enum Store {
    Directory(OwnedFd),
    Archive { file: File, entries: HashMap<String, Entry> },
}

/// What a tar file has under a name.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Content {
        offset: u64,
        len: u64,
    },
    /// docker-archives name the same layer twice in this way.
    Link(String),
}

impl Store {
    /// Opens a directory or a tar file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        if file.metadata()?.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        let entries = index(&file)
            .with_context(|| format!("{} is not a tar file of an image", path.display()))?;
        Ok(Self::Archive { file, entries })
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => open_beneath(directory, name).is_ok(),
            Self::Archive { entries, .. } => entries.contains_key(name),
        }
    }

    /// One file.
    pub(super) fn blob(&self, name: &str) -> Result<Take<File>> {
        let missing = || format!("{name} is missing");
        match self {
            Self::Directory(directory) => {
                let file = open_beneath(directory, name).with_context(missing)?;
                ensure!(file.metadata()?.is_file(), "{name} is not a file");
                Ok(file.take(u64::MAX))
            }
            Self::Archive { file, entries } => {
                let (offset, len) = find(entries, name).with_context(missing)?;
                // A descriptor of its own would have the same position: that of the open file.
                let mut own =
                    File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
                own.seek(SeekFrom::Start(offset))?;
                Ok(own.take(len))
            }
        }
    }

    /// One small file, all of it.
    pub(super) fn read(&self, name: &str, max_len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.blob(name)?
            .take(max_len + 1)
            .read_to_end(&mut bytes)
            .with_context(|| name.to_owned())?;
        ensure!(bytes.len() as u64 <= max_len, "{name} is longer than {max_len} bytes");
        Ok(bytes)
    }
}

fn open_beneath(directory: &OwnedFd, name: &str) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(directory, name, flags, Mode::empty(), resolve)?.into())
}

fn index(file: &File) -> Result<HashMap<String, Entry>> {
    let mut entries = HashMap::new();
    let limit = HeaderLimit::default();
    let mut archive = tar::Archive::new(limit.reader(file));
    for entry in limit.entries(archive.entries_with_seek()?) {
        let entry = entry?;
        ensure!(entries.len() < MAX_ENTRIES, "more than {MAX_ENTRIES} entries");
        let name = String::from_utf8(entry.path_bytes().into_owned())?;
        let name = name.trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            entries.insert(name, Entry::Content { offset, len });
        } else if let (true, Some(target)) =
            (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes())
        {
            let target = String::from_utf8(target.into_owned())?;
            let base = if kind.is_symlink() { name.as_str() } else { "" };
            let target = relative(base, &target);
            entries.insert(name, Entry::Link(target));
        }
    }
    Ok(entries)
}

/// The name that a link at `name` means by `target`, both within the archive.
fn relative(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn find(entries: &HashMap<String, Entry>, name: &str) -> Result<(u64, u64)> {
    let mut name = name;
    for _ in 0..MAX_LINKS {
        match entries.get(name) {
            Some(Entry::Content { offset, len }) => return Ok((*offset, *len)),
            Some(Entry::Link(target)) => name = target,
            None => bail!("there is no {name}"),
        }
    }
    bail!("too many links")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_within_the_archive() {
        assert_eq!(relative("b/layer.tar", "../a/layer.tar"), "a/layer.tar");
        assert_eq!(relative("b/layer.tar", "../../../a"), "a");
        assert_eq!(relative("", "a/layer.tar"), "a/layer.tar");
        let link = |to: &str| Entry::Link(to.into());
        let entries = HashMap::from([
            ("a".into(), Entry::Content { offset: 1, len: 2 }),
            ("b".into(), link("a")),
            ("loop".into(), link("loop")),
        ]);
        assert_eq!(find(&entries, "b").unwrap(), (1, 2));
        assert!(find(&entries, "loop").is_err());
        assert!(find(&entries, "c").is_err());
    }

    #[test]
    fn a_blob_outside_of_the_directory_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.blob("link").is_err());
        assert!(store.blob("../../etc/passwd").is_err());
        assert!(store.blob("/etc/passwd").is_err());
    }

    #[test]
    fn what_is_no_tar_file_is_refused_by_name() {
        let error = Store::open(Path::new("/etc/passwd")).err().unwrap();
        assert!(format!("{error:#}").contains("/etc/passwd"));
    }
}
