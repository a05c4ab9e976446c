//! Applying a layer's tar file to what the layers below it have left.
//!
//! Rules: <https://github.com/opencontainers/image-spec/blob/main/layer.md>.

use super::bounds::{Allowance, HeaderLimit};
use super::names::{Id, Names, parts};
use super::root::{Place, Root, printable};
use super::trash::{Trash, entries};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use tar::{Entry, EntryType};

/// Removes what the lower layers have under the rest of the name.
const WHITEOUT: &[u8] = b".wh.";
/// Removes what the lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks one layer. What it removes goes to `trash`.
pub(super) fn unpack(
    tar: impl Read,
    root: &Root,
    trash: &mut Trash,
    allowance: &Allowance,
) -> Result<()> {
    let (names, cleared) = (Names::new(), HashSet::new());
    let mut layer = Layer { root, trash, allowance, names, cleared, directories: HashMap::new() };
    let limit = HeaderLimit::default();
    let mut archive = tar::Archive::new(limit.stream(tar));
    for entry in limit.entries(archive.entries().context("not a tar file")?) {
        let mut entry = entry.context("a broken tar file")?;
        let name = entry.path_bytes().into_owned();
        layer.apply(&name, &mut entry).with_context(|| printable(&name))?;
        io::copy(&mut entry, &mut io::sink()).context("a broken tar file")?;
    }
    layer.finish()
}

/// Owner, mode, time and attributes of an entry.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    attributes: Vec<(String, Vec<u8>)>,
}

struct Layer<'a> {
    root: &'a Root,
    trash: &'a mut Trash,
    allowance: &'a Allowance,
    /// What this layer has, and the directories that it is in.
    names: Names,
    /// Directories in which there is nothing but what this layer has.
    cleared: HashSet<Id>,
    /// Their times are set at the end, for making things in them changes them.
    directories: HashMap<Id, Timestamps>,
}

impl Layer<'_> {
    fn apply(&mut self, name: &[u8], entry: &mut Entry<'_, impl Read>) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        self.allowance.note_length(entry.size())?;
        let metadata = metadata(entry)?;
        let parts = parts(name);
        if let Some((last, parents)) = parts.split_last()
            && last.starts_with(WHITEOUT)
        {
            let directory = self.names.add(parents)?;
            return self.hide(name, directory, last);
        }
        let id = self.names.add(&parts)?;
        let Some(place) = self.root.place(name, self.allowance)? else {
            ensure!(kind.is_dir(), "the root is not a directory");
            self.directories.insert(id, metadata.times.clone());
            return set_directory(self.root.directory()?, &metadata);
        };
        self.make_room(&place, kind)?;
        // Whether or not there was one before: what this layer makes and removes again lies in the trash meanwhile.
        self.allowance.take_file()?;
        match kind {
            EntryType::Directory => {
                self.directories.insert(id, metadata.times.clone());
                make_directory(&place, &metadata)
            }
            EntryType::Regular | EntryType::Continuous => {
                make_file(&place, entry, &metadata, |content, file| {
                    io::copy(content, file).map(drop)
                })
            }
            EntryType::GNUSparse => make_file(&place, entry, &metadata, copy_with_holes),
            EntryType::Symlink => make_symlink(&place, &link_name(entry)?, &metadata),
            EntryType::Link => self.make_link(&place, &link_name(entry)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                make_node(&place, entry, &metadata)
            }
            other => bail!("an entry of the unknown kind {other:?}"),
        }
    }

    /// Carries out a whiteout in this directory, whose own name has this last part.
    fn hide(&mut self, name: &[u8], directory: Id, last: &[u8]) -> Result<()> {
        let place = self.root.place(name, self.allowance)?.context("a whiteout of nothing")?;
        if last == OPAQUE {
            return self.clear(directory);
        }
        let hidden = last.strip_prefix(WHITEOUT).unwrap_or_default();
        ensure!(!matches!(hidden, b"" | b"." | b".."), "a whiteout of nothing");
        let hidden = std::ffi::CString::new(hidden)?;
        self.trash.take(place.parent.as_fd(), &hidden).map(drop)
    }

    /// Removes what is in the way of an entry. A directory stays for a directory.
    fn make_room(&mut self, place: &Place, kind: EntryType) -> Result<()> {
        match statat(&place.parent, &*place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => {
                if !kind.is_dir() {
                    self.trash.take(place.parent.as_fd(), &place.name)?;
                }
                Ok(())
            }
            Ok(_) => Ok(unlinkat(&place.parent, &*place.name, AtFlags::empty())?),
        }
    }

    /// Removes everything beneath a directory that is not of this layer.
    fn clear(&mut self, directory: Id) -> Result<()> {
        let mut unvisited = vec![directory];
        while let Some(directory) = unvisited.pop() {
            if !self.cleared.insert(directory) {
                continue;
            }
            let place = self.root.find(&self.names.full(directory));
            let opened = place.and_then(|place| match place {
                None => self.root.directory(),
                Some(place) => Ok(open_directory(&place)?),
            });
            let opened = match opened {
                // A link or a file of this layer: there is nothing beneath it.
                Err(error) if no_directory(&error) => continue,
                opened => opened?,
            };
            for child in entries(opened.as_fd())? {
                match self.names.child(directory, child.to_bytes()) {
                    Some(id) => unvisited.push(id),
                    None => drop(self.trash.take(opened.as_fd(), &child)?),
                }
            }
        }
        Ok(())
    }

    fn make_link(&self, place: &Place, target: &[u8]) -> Result<()> {
        let target = self.root.find(target)?.context("a hard link to the root")?;
        // Without following: a link to a symbolic link is one too.
        linkat(&target.parent, &*target.name, &place.parent, &*place.name, AtFlags::empty())
            .context("a hard link")
    }

    fn finish(self) -> Result<()> {
        for (id, times) in &self.directories {
            let place = self.root.find(&self.names.full(*id));
            let set = place.and_then(|place| match place {
                None => Ok(futimens(self.root.directory()?, times)?),
                Some(Place { parent, name }) => {
                    Ok(utimensat(parent, &*name, times, AtFlags::SYMLINK_NOFOLLOW)?)
                }
            });
            match set {
                // Removed again by a later entry.
                Err(error) if no_directory(&error) => {}
                set => set?,
            }
        }
        Ok(())
    }
}

/// Whether something failed because its name, or one on the way to it, is no directory.
fn no_directory(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(&(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)))
}

fn metadata(entry: &mut Entry<'_, impl Read>) -> Result<Metadata> {
    let mut attributes = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let Ok(key) = extension.key() else { continue };
        // Its content would be taken for the file's.
        ensure!(!key.starts_with("GNU.sparse."), "a sparse file in the form of POSIX tar");
        let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
        // Others mean something to the host: trusted.overlay.* would.
        if name == "security.capability" || name.starts_with("user.") {
            attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    let header = entry.header();
    let id = |id: u64| u32::try_from(id).context("an owner that is too large");
    let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(Metadata {
        uid: Uid::from_raw(id(header.uid()?)?),
        gid: Gid::from_raw(id(header.gid()?)?),
        mode: Mode::from_raw_mode(header.mode()? & 0o7777),
        times: Timestamps { last_access: time, last_modification: time },
        attributes,
    })
}

fn link_name(entry: &Entry<'_, impl Read>) -> Result<Vec<u8>> {
    Ok(entry.link_name_bytes().context("a link to nothing")?.into_owned())
}

fn make_file<R: Read>(
    place: &Place,
    content: &mut R,
    metadata: &Metadata,
    copy: impl FnOnce(&mut R, &mut File) -> io::Result<()>,
) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let mut file = File::from(openat(&place.parent, &*place.name, flags, mode)?);
    copy(content, &mut file)?;
    set_open(&file, metadata)
}

/// Copies but for blocks of zeroes, in whose place the file has holes.
fn copy_with_holes(content: &mut impl Read, file: &mut File) -> io::Result<()> {
    const BLOCK: u64 = 4096;
    let mut block = Vec::with_capacity(BLOCK as usize);
    let mut len = 0;
    loop {
        block.clear();
        let read = content.by_ref().take(BLOCK).read_to_end(&mut block)?;
        if read == 0 {
            return file.set_len(len);
        }
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(&block, len)?;
        }
        len += read as u64;
    }
}

fn make_directory(place: &Place, metadata: &Metadata) -> Result<()> {
    match mkdirat(&place.parent, &*place.name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    set_directory(open_directory(place)?, metadata)
}

fn open_directory(place: &Place) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&place.parent, &*place.name, flags, Mode::empty())
}

fn set_directory(directory: OwnedFd, metadata: &Metadata) -> Result<()> {
    set_open(&File::from(directory), metadata)
}

/// A change of the owner takes away set-user-id and capabilities, so these come after it.
fn set_open(file: &File, metadata: &Metadata) -> Result<()> {
    fchown(file, Some(metadata.uid), Some(metadata.gid)).context("its owner")?;
    fchmod(file, metadata.mode).context("its mode")?;
    for (name, value) in &metadata.attributes {
        match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // Not every file system has them.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(e).with_context(|| format!("its attribute {name}")),
        }
    }
    Ok(futimens(file, &metadata.times)?)
}

fn make_symlink(place: &Place, target: &[u8], metadata: &Metadata) -> Result<()> {
    symlinkat(target, &place.parent, &*place.name)?;
    set_by_name(place, metadata)
}

fn make_node(place: &Place, entry: &Entry<'_, impl Read>, metadata: &Metadata) -> Result<()> {
    let header = entry.header();
    let number = |number: io::Result<Option<u32>>| Ok::<_, io::Error>(number?.unwrap_or(0));
    let device =
        || Ok::<_, io::Error>((number(header.device_major())?, number(header.device_minor())?));
    // A pipe has no numbers: its fields may be empty.
    let (kind, (major, minor)) = match header.entry_type() {
        EntryType::Char => (FileType::CharacterDevice, device()?),
        EntryType::Block => (FileType::BlockDevice, device()?),
        _ => (FileType::Fifo, (0, 0)),
    };
    let device = makedev(major, minor);
    mknodat(&place.parent, &*place.name, kind, Mode::from_raw_mode(0o600), device)?;
    set_by_name(place, metadata)?;
    // The name is a node that was just made, so there is no link to follow.
    Ok(chmodat(&place.parent, &*place.name, metadata.mode, AtFlags::empty())?)
}

fn set_by_name(place: &Place, metadata: &Metadata) -> Result<()> {
    let (parent, name, flags) = (&place.parent, &*place.name, AtFlags::SYMLINK_NOFOLLOW);
    chownat(parent, name, Some(metadata.uid), Some(metadata.gid), flags).context("its owner")?;
    Ok(utimensat(parent, name, &metadata.times, flags)?)
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
