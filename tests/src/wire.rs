//! What the host and the lab's agent say to each other, one connection a request.
//!
//! A frame is one byte of [`Kind`], four bytes of length (little-endian) and the body.
//! The first frame is a [`Request`] in JSON; what follows depends on it.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A connected stream socket. The calls that std's type makes are the same for TCP, which the emulated lab is
/// reached by, and for the unix socket of a lab on the host.
pub type Connection = std::os::unix::net::UnixStream;

/// The TCP port on which the lab's agent listens.
pub const PORT: u16 = 7000;

/// Longest body of a frame, bytes.
const MAX_BODY: usize = 16 << 20;

/// How much file or stream data goes into one frame, bytes.
pub const CHUNK: usize = 256 << 10;

/// First frame of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Answered at once.
    Ping,
    /// Sets the lab's wall clock, nanoseconds since the epoch.
    SetClock(u64),
    /// Runs a command; streams flow both ways until [`Kind::Exit`].
    Exec(Exec),
    /// Brings entries; the answer is the list of the files that are wanted, which then follow.
    Put(Vec<Entry>),
    /// Asks for a file or a whole folder.
    Get(PathBuf),
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Set in addition to the agent's own environment.
    pub env: Vec<(String, String)>,
    /// Rows and columns of a terminal, when one is wanted.
    pub tty: Option<(u16, u16)>,
}

/// A file, folder or link on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it belongs on the receiving side.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A folder.
    Dir,
    /// A symbolic link and where it points.
    Link(PathBuf),
    /// A regular file: its length in bytes and [`hash`] of its contents.
    File {
        /// Bytes that follow.
        size: u64,
        /// [`hash`] of them.
        hash: String,
    },
}

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`Request`].
    Request = 0,
    /// Bytes for the command's standard input.
    Stdin = 1,
    /// The end of standard input.
    StdinEnd = 2,
    /// Two `u16`: rows and columns of the terminal.
    Resize = 3,
    /// Bytes of standard output, or of the terminal.
    Stdout = 4,
    /// Bytes of standard error.
    Stderr = 5,
    /// `i32`: the exit status.
    Exit = 6,
    /// JSON, depending on the request.
    Answer = 7,
    /// Bytes of a file.
    Data = 8,
    /// The request failed; a text.
    Error = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self> {
        const ALL: [Kind; 10] = [
            Kind::Request,
            Kind::Stdin,
            Kind::StdinEnd,
            Kind::Resize,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Exit,
            Kind::Answer,
            Kind::Data,
            Kind::Error,
        ];
        ALL.get(usize::from(byte)).copied().with_context(|| format!("frame of unknown kind {byte}"))
    }
}

/// Writes one frame.
///
/// # Errors
/// When the stream fails or the body is over the limit.
pub fn write_frame(to: &mut impl Write, kind: Kind, body: &[u8]) -> Result<()> {
    if body.len() > MAX_BODY {
        bail!("frame of {} bytes is too long", body.len());
    }
    let mut header = [0u8; 5];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(body)?;
    Ok(())
}

/// Reads one frame; `None` when the stream ended before it.
///
/// # Errors
/// When the stream fails, ends inside a frame, or holds no frame.
pub fn read_frame(from: &mut impl Read) -> Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0u8; 1];
    if from.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let mut len = [0u8; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_BODY {
        bail!("frame of {len} bytes is too long");
    }
    let mut body = vec![0u8; len];
    from.read_exact(&mut body)?;
    Ok(Some((Kind::from_byte(kind[0])?, body)))
}

/// Writes a value as a frame of JSON.
///
/// # Errors
/// As [`write_frame`].
pub fn write_json(to: &mut impl Write, kind: Kind, value: &impl Serialize) -> Result<()> {
    write_frame(to, kind, &serde_json::to_vec(value)?)
}

/// Reads a frame of `kind` and its JSON value; a [`Kind::Error`] frame becomes the error.
///
/// # Errors
/// As [`read_frame`], and when the frame is another.
pub fn read_json<T: DeserializeOwned>(from: &mut impl Read, kind: Kind) -> Result<T> {
    match read_frame(from)? {
        Some((got, body)) if got == kind => Ok(serde_json::from_slice(&body)?),
        Some((Kind::Error, body)) => bail!("{}", String::from_utf8_lossy(&body)),
        Some((got, _)) => bail!("expected a frame of kind {kind:?}, got {got:?}"),
        None => bail!("the connection ended"),
    }
}

/// A fast 128-bit mark of contents, to tell whether a file changed; not for security.
pub fn hash(bytes: &[u8]) -> String {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let (mut a, mut b) = (bytes.len() as u64, K);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        a = (a ^ word).wrapping_mul(K).rotate_left(29);
        b = (b.rotate_left(17) ^ word).wrapping_mul(K | 0x10).wrapping_add(a);
    }
    for byte in words.remainder() {
        a = (a ^ u64::from(*byte)).wrapping_mul(K).rotate_left(29);
        b = b.wrapping_add(a).wrapping_mul(K | 2);
    }
    format!("{:016x}{:016x}", a ^ (a >> 31), b ^ (b >> 29))
}

/// Lists `local` and, for a folder, all below it, as entries that belong at `remote`;
/// each with the file it was made from.
///
/// # Errors
/// When a file can't be read.
pub fn list_entries(local: &Path, remote: &Path) -> Result<Vec<(PathBuf, Entry)>> {
    let mut found = Vec::new();
    list_into(local, remote, &mut found)?;
    Ok(found)
}

fn list_into(local: &Path, remote: &Path, found: &mut Vec<(PathBuf, Entry)>) -> Result<()> {
    let meta = local.symlink_metadata().with_context(|| local.display().to_string())?;
    let mode = meta.permissions().mode() & 0o7777;
    let kind = if meta.is_dir() {
        EntryKind::Dir
    } else if meta.is_symlink() {
        EntryKind::Link(std::fs::read_link(local)?)
    } else if meta.is_file() {
        let bytes = std::fs::read(local).with_context(|| local.display().to_string())?;
        EntryKind::File { size: bytes.len() as u64, hash: hash(&bytes) }
    } else {
        return Ok(()); // sockets, pipes and devices stay where they are
    };
    let is_dir = kind == EntryKind::Dir;
    found.push((local.to_owned(), Entry { path: remote.to_owned(), mode, kind }));
    if is_dir {
        let mut names: Vec<_> =
            std::fs::read_dir(local)?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
        names.sort();
        for name in names {
            list_into(&local.join(&name), &remote.join(&name), found)?;
        }
    }
    Ok(())
}

/// Sends exactly `size` bytes of `file` as [`Kind::Data`] frames (a file that shrank is padded).
///
/// # Errors
/// When the file or the stream fails.
pub fn send_file(to: &mut impl Write, file: &Path, size: u64) -> Result<()> {
    let mut source = std::fs::File::open(file)?.take(size).chain(std::io::repeat(0)).take(size);
    let mut chunk = vec![0u8; CHUNK];
    let mut left = size;
    while left > 0 {
        let want = left.min(CHUNK as u64) as usize;
        source.read_exact(&mut chunk[..want])?;
        write_frame(to, Kind::Data, &chunk[..want])?;
        left -= want as u64;
    }
    Ok(())
}

/// Makes `entry` on this side; a file's contents are read from `from`. Files appear whole (by rename).
///
/// # Errors
/// When the file system or the stream fails.
pub fn receive_entry(from: &mut impl Read, entry: &Entry) -> Result<()> {
    let path = &entry.path;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    match &entry.kind {
        EntryKind::Dir => {
            if !path.is_dir() {
                std::fs::create_dir(path).with_context(|| path.display().to_string())?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(entry.mode))?;
            }
        }
        EntryKind::Link(target) => {
            if path.symlink_metadata().is_ok() {
                std::fs::remove_file(path)?;
            }
            std::os::unix::fs::symlink(target, path)?;
        }
        EntryKind::File { size, .. } => {
            let mut name = path.file_name().context("a file without a name")?.to_owned();
            name.push(".part");
            let part = path.with_file_name(name);
            let mut file =
                std::fs::File::create(&part).with_context(|| part.display().to_string())?;
            let mut left = *size;
            while left > 0 {
                match read_frame(from)? {
                    Some((Kind::Data, body)) if body.len() as u64 <= left => {
                        file.write_all(&body)?;
                        left -= body.len() as u64;
                    }
                    Some((Kind::Error, body)) => bail!("{}", String::from_utf8_lossy(&body)),
                    _ => bail!("the file {} did not come whole", path.display()),
                }
            }
            std::fs::set_permissions(&part, std::fs::Permissions::from_mode(entry.mode))?;
            std::fs::rename(&part, path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// What stays the same as long as nobody wrote the file: device, inode, length, time of change.
///
/// # Errors
/// When there is no such file.
pub fn stamp(path: &Path) -> Result<(u64, u64, u64, i64, i64)> {
    let m = path.symlink_metadata()?;
    Ok((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_the_end_is_told_from_a_cut() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Stdout, b"hello").unwrap();
        let mut whole = &wire[..];
        assert_eq!(read_frame(&mut whole).unwrap(), Some((Kind::Stdout, b"hello".to_vec())));
        assert_eq!(read_frame(&mut whole).unwrap(), None);
        assert!(read_frame(&mut &wire[..7]).is_err());
        assert!(read_frame(&mut &[99u8, 0, 0, 0, 0][..]).is_err());
    }

    #[test]
    fn a_change_anywhere_changes_the_hash() {
        let base = vec![7u8; 1003];
        let mut seen = std::collections::HashSet::from([hash(&base)]);
        for i in 0..base.len() {
            let mut other = base.clone();
            other[i] ^= 0x80;
            assert!(seen.insert(hash(&other)), "byte {i}");
        }
        assert!(seen.insert(hash(&base[1..])));
    }

    #[test]
    fn a_folder_arrives_as_it_was_sent() {
        let dir = std::env::temp_dir().join(format!("lab-wire-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::write(from.join("sub/file"), vec![3u8; CHUNK + 5]).unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        for (local, entry) in list_entries(&from, &to).unwrap() {
            let mut wire = Vec::new();
            if let EntryKind::File { size, .. } = entry.kind {
                send_file(&mut wire, &local, size).unwrap();
            }
            receive_entry(&mut &wire[..], &entry).unwrap();
        }
        let strip = |root: &Path| -> Vec<Entry> {
            list_entries(root, Path::new("/")).unwrap().into_iter().map(|(_, e)| e).collect()
        };
        assert_eq!(strip(&from), strip(&to));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
