//! The directory that an image is unpacked to. No name leads out of it.
//!
//! Names are resolved by the kernel with the directory as their root (`RESOLVE_IN_ROOT`), whatever symbolic
//! links and `..` they go through; the last part of a name is never followed.

use super::bounds::Allowance;
use super::names::parts;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open root directory.
pub(crate) struct Root(OwnedFd);

/// Where an entry is: an open directory and a name in it.
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: CString,
}

impl Root {
    /// Opens an existing directory.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty());
        Ok(Self(directory.with_context(|| path.display().to_string())?))
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> Result<OwnedFd> {
        Ok(openat2(
            &self.0,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            RESOLVE,
        )?)
    }

    /// How many bytes a user may still write to its file system.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let system = rustix::fs::fstatvfs(self.directory()?)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// How many files a user may still make on its file system; any number where these are not counted.
    pub(crate) fn free_files(&self) -> Result<u64> {
        let system = rustix::fs::fstatvfs(self.directory()?)?;
        Ok(if system.f_files == 0 { u64::MAX } else { system.f_favail })
    }

    /// Where the entry of this name belongs; directories on the way are made, and paid for. `None`: the root itself.
    pub(super) fn place(&self, name: &[u8], allowance: &Allowance) -> Result<Option<Place>> {
        place(name, |parts| self.make(parts, allowance))
    }

    /// Where something of this name is, or would be in directories that are there. `None`: the root itself.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Place>> {
        place(name, |parts| Ok(self.open_at(parts)?))
    }

    fn open_at(&self, parts: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        openat2(&self.0, path, DIRECTORY, Mode::empty(), RESOLVE)
    }

    fn make(&self, parts: &[&[u8]], allowance: &Allowance) -> Result<OwnedFd> {
        match self.open_at(parts) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        let mut directory = self.open_at(&[])?;
        for depth in 1..=parts.len() {
            directory = match self.open_at(&parts[..depth]) {
                Err(Errno::NOENT) => {
                    allowance.take_file()?;
                    mkdirat(&directory, parts[depth - 1], Mode::from_raw_mode(0o755))?;
                    self.open_at(&parts[..depth])?
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    /// Reads a small file, following links within the root. `None` if there is none.
    pub(super) fn read(&self, name: &str, max_len: u64) -> Result<Option<String>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file: File = match openat2(&self.0, name, flags, Mode::empty(), RESOLVE) {
            Ok(file) => file.into(),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e).with_context(|| name.to_owned()),
        };
        if !file.metadata()?.is_file() {
            bail!("{name} is not a file");
        }
        let mut bytes = Vec::new();
        file.take(max_len).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// The place of a name, in the directory that `parent` opens.
fn place(name: &[u8], parent: impl FnOnce(&[&[u8]]) -> Result<OwnedFd>) -> Result<Option<Place>> {
    let parts = checked_parts(name)?;
    let Some((last, parents)) = parts.split_last() else { return Ok(None) };
    let parent = parent(parents).with_context(|| printable(name))?;
    Ok(Some(Place { parent, name: CString::new(*last)? }))
}

/// The parts of an entry's name. An image has no reason to say `..`.
fn checked_parts(name: &[u8]) -> Result<Vec<&[u8]>> {
    let parts = parts(name);
    if parts.contains(&&b".."[..]) {
        bail!("the name {} leads upwards", printable(name));
    }
    Ok(parts)
}

/// A name that somebody else chose, for a message.
pub(super) fn printable(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    name[..name.len().min(LONGEST)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_on_the_way_stay_inside() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::create_dir_all(inside.join("usr/bin")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../outside", inside.join("relative")).unwrap();
        symlink("usr/bin", inside.join("bin")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = Root::open(&inside).unwrap();
        let allowance = Allowance::new(1 << 20);
        let make = |name: &[u8]| {
            let place = root.place(name, &allowance)?.context("the root")?;
            Ok::<_, anyhow::Error>(mkdirat(
                &place.parent,
                &*place.name,
                Mode::from_raw_mode(0o755),
            )?)
        };
        make(b"bin/tool").unwrap();
        make(b"/new/sub/dir").unwrap();
        assert!(inside.join("usr/bin/tool").is_dir() && inside.join("new/sub/dir").is_dir());
        for name in [&b"absolute/x"[..], b"relative/x", b"loop/x"] {
            // Whether it is refused or made inside: nothing is made outside.
            let _ = make(name);
        }
        for name in [&b"../x"[..], b"bin/../../x", b".."] {
            assert!(make(name).is_err());
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(root.place(b"./", &allowance).unwrap().is_none());
        // Looking for something makes nothing.
        assert!(root.find(b"usr/bin/tool").unwrap().is_some() && root.find(b"a/b").is_err());
        assert!(!inside.join("a").exists());
    }

    #[test]
    fn files_that_can_still_be_made_are_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let free = Root::open(scratch.path()).unwrap().free_files().unwrap();
        assert!(free > 0);
        // Of no inodes, and with as many files as there is memory.
        assert_eq!(Root::open(Path::new("/proc")).unwrap().free_files().unwrap(), u64::MAX);
    }

    #[test]
    fn files_outside_are_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        symlink("/etc/hostname", scratch.path().join("link")).unwrap();
        let root = Root::open(scratch.path()).unwrap();
        assert_eq!(root.read("link", 100).unwrap(), None);
        assert_eq!(root.read("/etc/passwd", 100).unwrap(), None);
        assert!(root.read("/", 100).is_err());
    }
}
