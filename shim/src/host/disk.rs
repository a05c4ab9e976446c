//! Block devices and disk images of the host, looked at and opened for the VMM.

use crate::error::{Error, Result};
use crate::host::number_list::NumberList;
use crate::host::processors;
use crate::oci::plan::disks::{Disk, Source};
use crate::oci::plan::host::{Directory, DirectoryId, Host, Kind, Memory, MountOf, Numbers};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use protocol::control::MAX_FDS;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Sizes are multiples of it, bytes (virtio 1.3 §5.2.4).
const SECTOR: u64 = 512;

/// This host.
#[derive(Debug, Clone, Copy)]
pub struct ThisHost;

impl Host for ThisHost {
    fn kind(&self, path: &Path) -> Kind {
        fs::metadata(path).map_or(Kind::Other, |meta| kind(&meta))
    }

    fn block_device(&self, (major, minor): Numbers) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(Path::new("/dev").join(name))
    }

    fn memory(&self, path: &Path) -> Option<Memory> {
        let size = statfs(path).ok().filter(|all| all.filesystem_type() == TMPFS_MAGIC)?;
        let (meta, above) = (fs::metadata(path).ok()?, fs::metadata(path.join("..")).ok()?);
        // A directory of one would be in the same file system as the one above it.
        if !meta.is_dir() || meta.dev() == above.dev() {
            return None;
        }
        Some(Memory {
            size: size.blocks().saturating_mul(u64::try_from(size.block_size()).ok()?),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
        })
    }

    fn part(&self, path: &Path) -> Option<Directory> {
        let path = path.canonicalize().ok()?;
        let meta = fs::metadata(&path).ok().filter(Metadata::is_dir)?;
        let (wholes, below) = wholes(&fs::read("/proc/self/mountinfo").ok()?, &path)?;
        Some(Directory {
            wholes,
            below,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
        })
    }

    fn mount_of(&self, path: &Path) -> MountOf {
        let (Ok(path), Ok(mounts)) = (path.canonicalize(), fs::read("/proc/self/mountinfo")) else {
            return MountOf::default();
        };
        let (mut found, mount) = mount_in(&mounts, path.as_os_str().as_bytes());
        let meta = fs::metadata(path).ok().filter(Metadata::is_dir);
        let id = |meta: Metadata| DirectoryId { mount, device: meta.dev(), inode: meta.ino() };
        found.directory = meta.map(id);
        found
    }

    fn processors(&self) -> NumberList {
        processors::online()
    }
}

/// What mountinfo (proc_pid_mountinfo(5)) says of the mount that an absolute path is on, and its number.
fn mount_in(mountinfo: &[u8], path: &[u8]) -> (MountOf, u64) {
    let path = escaped(path);
    let (mut found, mut number, mut longest) = (MountOf::default(), 0, 0);
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next().and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let mut fields = fields.skip(3);
        let (Some(at), Some(options)) = (fields.next(), fields.next()) else { continue };
        // Of a later mount on the same point the earlier one is hidden.
        if is_below(&path, at) && at.len() >= longest {
            longest = at.len();
            number = id.unwrap_or_default();
            let options = String::from_utf8_lossy(options);
            found.options = options.split(',').map(str::to_owned).collect();
        }
        found.mounts_below |= at != path && is_below(at, &path);
    }
    (found, number)
}

/// Where the file system that an absolute path is on is mounted whole, by mountinfo, and the path in it; none, where the
/// path is the root of it.
fn wholes(mountinfo: &[u8], path: &Path) -> Option<(Vec<PathBuf>, PathBuf)> {
    let path = escaped(path.as_os_str().as_bytes());
    // Numbers of the file system, what of it is mounted, and where.
    let fields = |line: &'_ [u8]| -> Option<[Vec<u8>; 3]> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2).map(<[u8]>::to_vec);
        Some([fields.next()?, fields.next()?, fields.next()?])
    };
    let all: Vec<_> = mountinfo.split(|byte| *byte == b'\n').filter_map(fields).collect();
    let above = all.iter().filter(|[_, _, at]| is_below(&path, at));
    // Of those on the same point the last is seen.
    let [numbers, root, at] = above.max_by_key(|[_, _, at]| at.len())?;
    let parts = [root, path.strip_prefix(&at[..])?];
    let below = parts.map(|part| part.strip_prefix(b"/").unwrap_or(part));
    let below: PathBuf = below.into_iter().filter(|part| !part.is_empty()).map(unescaped).collect();
    let is_whole = |of: &&[Vec<u8>; 3]| of[0] == *numbers && of[1] == b"/";
    let wholes = all.iter().filter(is_whole).map(|[_, _, at]| unescaped(at));
    (below != Path::new("")).then(|| (wholes.collect(), below))
}

/// The path that [`escaped`] has written.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            path.push(code);
            rest = &after[3..];
        } else {
            path.push(byte);
            rest = after;
        }
    }
    std::ffi::OsString::from_vec(path).into()
}

/// Whether a path is another one or below it.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(above) else { return false };
    above == b"/" || rest.is_empty() || rest.starts_with(b"/")
}

/// As the kernel writes a path into mountinfo (proc_pid_mountinfo(5)).
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
            byte => text.push(*byte),
        }
    }
    text
}

fn kind(meta: &Metadata) -> Kind {
    if meta.is_file() {
        Kind::File
    } else if meta.file_type().is_block_device() {
        Kind::Block(numbers(meta.rdev()))
    } else {
        Kind::Other
    }
}

fn numbers(device: u64) -> Numbers {
    (major(device) as u32, minor(device) as u32)
}

/// A disk that is open.
#[derive(Debug)]
pub struct OpenDisk {
    /// Its files, one behind the other, and their sizes, bytes. They hold what claim there is on it.
    pub parts: Vec<(File, u64)>,
}

/// Opens a disk that is there. One with a file system is claimed as long as it is open: a file by a lock, a device by the
/// kernel's own means, for which mounting it is a claim as well. Readers share it.
///
/// # Errors
/// It is in use, is neither file nor block device, or is no whole number of sectors; it is named. Several files are too
/// many, or are to be written to.
pub fn open(disk: &Disk) -> Result<OpenDisk> {
    let paths = match &disk.source {
        Source::One(path) | Source::Blank { directory: path, .. } => std::slice::from_ref(path),
        Source::Several(paths) => paths,
    };
    let count = paths.len();
    if count == 0 || count > MAX_FDS || (count > 1 && !disk.read_only) {
        let what =
            format!("it is of {count} files: up to {MAX_FDS} are one disk, for reading only");
        return Err(invalid(disk.source.path(), &what));
    }
    let parts = paths.iter().map(|path| open_part(path, disk));
    Ok(OpenDisk { parts: parts.collect::<Result<_>>()? })
}

fn invalid(path: &Path, what: &str) -> Error {
    Error::InvalidArgument(format!("disk {}: {what}", path.display()))
}

fn open_part(path: &Path, disk: &Disk) -> Result<(File, u64)> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EBUSY | libc::EAGAIN) => Error::FailedPrecondition(format!(
            "disk {}: in use: mounted on the host, or another machine's",
            path.display()
        )),
        _ => Error::path("open the disk", path)(error),
    };
    // From here on it is this one, whatever takes its place at the path.
    let found = File::options().read(true).custom_flags(libc::O_PATH).open(path).map_err(failed)?;
    let kind = kind(&found.metadata().map_err(failed)?);
    // To open something else may block, or do what nobody asked for.
    if kind == Kind::Other {
        return Err(invalid(path, "it is neither a file nor a block device"));
    }
    let claim = disk.exclusive && !disk.read_only && kind != Kind::File;
    let mut file = File::options()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(if claim { libc::O_EXCL } else { 0 })
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(failed)?;
    if kind == Kind::File && disk.exclusive {
        lock(&file, disk.read_only).map_err(failed)?;
    }
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        let what = format!("its size, {bytes} bytes, is not a positive multiple of {SECTOR}");
        return Err(invalid(path, &what));
    }
    Ok((file, bytes))
}

/// The lock is the open file's: it goes along to the VMM, and ends with it.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    Ok(fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_a_path_is_on_is_found() {
        let mountinfo = b"1 0 8:1 / / rw,relatime - ext4 /dev/a rw\n\
            2 1 0:5 / /mnt\\040a rw - tmpfs t rw\n\
            3 1 0:6 / /mnt\\040a ro,nosuid - tmpfs t rw\n\
            4 3 0:7 / /mnt\\040a/x/y rw,noexec - tmpfs t rw\n";
        let of = |path: &str| {
            let (found, number) = mount_in(mountinfo, path.as_bytes());
            (found.options.join(","), found.mounts_below, number)
        };
        assert_eq!(of("/mnt a"), ("ro,nosuid".to_owned(), true, 3));
        assert_eq!(of("/mnt a/x"), ("ro,nosuid".to_owned(), true, 3));
        assert_eq!(of("/mnt a/x/y/z"), ("rw,noexec".to_owned(), false, 4));
        assert_eq!(of("/mnt ab"), ("rw,relatime".to_owned(), false, 1));
        assert_eq!(of("/"), ("rw,relatime".to_owned(), true, 1));
        assert_eq!(escaped(b"/a b\\c\n"), b"/a\\040b\\134c\\012");
        assert!(ThisHost.mount_of(Path::new("/")).mounts_below);
        let of_host = |path: &str| ThisHost.mount_of(Path::new(path)).directory;
        assert!(
            of_host("/proc").is_some_and(|id| id.mount > 0) && of_host("/proc") != of_host("/")
        );
        assert_eq!(of_host("/proc/version"), None);
        assert_eq!(ThisHost.mount_of(Path::new("/no/such/directory")), MountOf::default());
    }

    #[test]
    fn the_whole_that_a_directory_is_of_is_found() {
        let mountinfo = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:5 / /pod/empty\\040dir rw - tmpfs t rw\n\
            3 1 0:5 /a\\040b /pod/subpaths/0 rw - tmpfs t rw\n\
            4 1 8:1 /srv /mnt rw - ext4 /dev/a rw\n";
        let of = |path: &str| wholes(mountinfo, Path::new(path));
        let memory = |below: &str| Some((vec!["/pod/empty dir".into()], below.into()));
        assert_eq!(of("/pod/subpaths/0"), memory("a b"));
        assert_eq!(of("/pod/subpaths/0/c"), memory("a b/c"));
        assert_eq!(of("/pod/empty dir/c/d"), memory("c/d"));
        assert_eq!(of("/pod/empty dir"), None);
        assert_eq!(of("/mnt/x"), Some((vec!["/".into()], "srv/x".into())));
        assert_eq!(of("/"), None);
        let own = ThisHost.part(Path::new("/proc/self")).unwrap();
        assert!(own.wholes.contains(&"/proc".into()), "{own:?}");
        assert_eq!(ThisHost.part(Path::new("/proc/version")), None);
    }

    fn disk(path: &Path, read_only: bool, exclusive: bool) -> Disk {
        let source = Source::One(path.to_owned());
        Disk { source, read_only, exclusive, numbers: (0, 0) }
    }

    #[test]
    fn an_image_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, [0; 1024]).unwrap();
        let writer = open(&disk(&path, false, true)).unwrap();
        assert_eq!(writer.parts[0].1, 1024);
        for read_only in [false, true] {
            let error = open(&disk(&path, read_only, true)).unwrap_err();
            assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        }
        open(&disk(&path, false, false)).unwrap();
        drop(writer);
        let readers = [(); 2].map(|()| open(&disk(&path, true, true)).unwrap());
        assert!(open(&disk(&path, false, true)).is_err());
        drop(readers);
    }

    #[test]
    fn several_files_are_one_disk_for_readers() {
        let dir = tempfile::tempdir().unwrap();
        let part = |bytes: usize| {
            let path = dir.path().join(bytes.to_string());
            fs::write(&path, vec![0; bytes]).unwrap();
            path
        };
        let of = |paths: Vec<PathBuf>, read_only| Disk {
            source: Source::Several(paths),
            ..disk(Path::new(""), read_only, true)
        };
        let parts = vec![part(1024), part(512)];
        let opened = open(&of(parts.clone(), true)).unwrap();
        assert_eq!(opened.parts.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), [1024, 512]);
        let again = open(&of(parts.clone(), true));
        assert!(again.is_ok(), "another machine of the same image: {again:?}");
        let writer = open(&disk(&parts[1], false, true));
        assert!(matches!(writer, Err(Error::FailedPrecondition(_))), "{writer:?}");
        let error = open(&of(vec![parts[0].clone(), part(1000)], true)).unwrap_err().to_string();
        assert!(error.contains("/1000: "), "{error}");
        for (paths, read_only) in
            [(parts, false), (vec![part(512); MAX_FDS + 1], true), (vec![], true)]
        {
            let (count, refused) = (paths.len(), open(&of(paths, read_only)));
            assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{count}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("odd");
        fs::write(&odd, [0; 1000]).unwrap();
        for (path, what) in
            [(odd.as_path(), "1000"), (Path::new("/dev/null"), "neither"), (dir.path(), "neither")]
        {
            let error = open(&disk(path, true, true)).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(path.to_str().unwrap()), "{error}");
        }
        assert!(open(&disk(&dir.path().join("none"), true, true)).is_err());
    }

    #[test]
    fn what_takes_the_place_of_an_image_meanwhile_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["image", "other"].map(|name| dir.path().join(name));
        fs::write(&path, [0; 512]).unwrap();
        // To open it would wait for a writer.
        nix::unistd::mkfifo(&other, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let looked_at = disk(&path, true, true);
        let opener = std::thread::spawn(move || {
            for _ in 0..5000 {
                if let Err(error) = open(&looked_at) {
                    assert!(error.to_string().contains("neither"), "{}", error.chain());
                }
            }
        });
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !opener.is_finished() {
            let (cwd, exchange) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
            rustix::fs::renameat_with(cwd, &path, cwd, &other, exchange).unwrap();
            assert!(std::time::Instant::now() < end, "it waits for a writer");
        }
        opener.join().unwrap();
    }
}
