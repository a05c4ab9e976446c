//! The files: twenty layers that an overlay joins, each with its share.

use crate::bundle::Bundle;
use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Small files, spread over all layers.
pub const SMALL_FILES: usize = 30_000;

const LAYERS: usize = 20;

/// More than a machine has slots for disks.
pub const IMAGE_LAYERS: usize = 12;

/// What upper layers hide or replace, and by what.
const LOW: [&str; 6] =
    ["file", "to-directory", "opaque/hidden", "hidden/file", "gone", "to-file/file"];
const HIGH: [&str; 4] = ["file", "to-directory/file", "opaque/seen", "to-file"];

/// Small files of a directory.
const DIRECTORY: usize = 300;

/// A directory that all layers add to.
const SHARED: &str = "small/shared";

/// This program, inside.
pub const PROGRAM: &str = "/bin/inside";

/// A copy of this program whose file gives rights.
pub struct Program {
    pub path: &'static str,
    /// What a user gains by it, and what with no_new_privs.
    pub rights: &'static str,
    mode: u32,
    capability: Option<[u8; 20]>,
}

/// CAP_NET_RAW, effective and permitted (`struct vfs_cap_data`, version 2).
pub const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What there is of them.
pub const PROGRAMS: [Program; 4] = [
    Program { path: "/bin/plain", rights: "1000:1000 \n1000:1000 ", mode: 0o755, capability: None },
    Program {
        path: "/bin/setuid",
        rights: "0:1000 20c6\n1000:1000 ",
        mode: 0o4755,
        capability: None,
    },
    Program { path: "/bin/setgid", rights: "1000:0 \n1000:1000 ", mode: 0o2755, capability: None },
    Program {
        path: "/bin/capable",
        rights: "1000:1000 2000\n1000:1000 ",
        mode: 0o755,
        capability: Some(NET_RAW),
    },
];

/// The joined layers; taken apart when dropped, before the bundle they lie in.
pub struct Layers(PathBuf);

impl Layers {
    /// Makes the files, and joins the layers.
    pub fn make(bundle: &Bundle) -> Result<Self> {
        let layers: Vec<PathBuf> = (0..LAYERS).map(|n| bundle.0.join(format!("{n}"))).collect();
        for layer in &layers {
            fs::create_dir(layer)?;
        }
        small_files(&layers)?;
        hide_and_replace(&layers)?;
        programs(&layers[2], &std::env::current_exe()?)?;
        odd_names(&layers[3])?;
        odd_kinds(&layers[4])?;
        odd_owners_modes_and_times(&layers[5])?;
        extended_attributes(&layers[6])?;
        let merged = bundle.0.join("merged");
        fs::create_dir(&merged)?;
        let mut lower: Vec<String> =
            layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        lower.push(bundle.0.join("rootfs").display().to_string());
        let options = format!("lowerdir={}", lower.join(":"));
        let none = MsFlags::empty();
        mount(Some("overlay"), &merged, Some("overlay"), none, Some(options.as_str()))
            .context("overlay")?;
        Ok(Self(merged))
    }

    /// Where they are joined.
    pub fn merged(&self) -> &Path {
        &self.0
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Some of them as the layers of an image, below `work`: the folders that become archives, the lowest first. What an image
/// can't have, and what an upper layer hides, is as images have it.
pub fn image_layers(work: &Path) -> Result<Vec<PathBuf>> {
    let layers: Vec<PathBuf> = (0..IMAGE_LAYERS).map(|n| work.join(format!("{n}"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        write(&layer.join(format!("layers/{n}")), b"")?;
        write(&layer.join("top"), n.to_string().as_bytes())?;
    }
    programs(&layers[2], Path::new("/usr/bin/busybox"))?;
    odd_names(&layers[3])?;
    fs::remove_file(layers[3].join("names/.wh.not-a-whiteout"))?;
    fs::remove_dir_all(layers[3].join("names/directories/.wh.not-a-whiteout"))?;
    odd_kinds(&layers[4])?;
    for name in ["socket", "sparse"] {
        fs::remove_file(layers[4].join("kinds").join(name))?;
    }
    odd_owners_modes_and_times(&layers[5])?;
    extended_attributes(&layers[6])?;
    let [low, high] = [&layers[1].join("changed"), &layers[IMAGE_LAYERS - 1].join("changed")];
    for name in LOW {
        write(&low.join(name), b"low")?;
    }
    for name in HIGH {
        write(&high.join(name), b"high")?;
    }
    for name in [".wh.hidden", ".wh.gone", "opaque/.wh..wh..opq"] {
        write(&high.join(name), b"")?;
    }
    Ok(layers)
}

fn small_files(layers: &[PathBuf]) -> Result<()> {
    for n in 0..SMALL_FILES {
        let layer = &layers[n % LAYERS];
        let directory =
            layer.join(format!("small/{}", n / LAYERS / DIRECTORY * LAYERS + n % LAYERS));
        if (n / LAYERS).is_multiple_of(DIRECTORY) {
            fs::create_dir_all(&directory)?;
            write(&layer.join(SHARED).join(format!("{n}")), b"shared")?;
        }
        fs::write(directory.join(format!("{n}")), format!("file {n}"))?;
    }
    Ok(())
}

/// What upper layers do to lower ones: hide a file, a directory, all that was in a directory; and replace.
fn hide_and_replace(layers: &[PathBuf]) -> Result<()> {
    let [low, high] = [&layers[0].join("changed"), &layers[19].join("changed")];
    for name in LOW {
        write(&low.join(name), b"low")?;
    }
    for name in HIGH {
        write(&high.join(name), b"high")?;
    }
    for name in ["hidden", "gone"] {
        special(&high.join(name), SFlag::S_IFCHR, 0o000, (0, 0))?;
    }
    set_attribute(&high.join("opaque"), "trusted.overlay.opaque", b"y")
}

fn programs(layer: &Path, own: &Path) -> Result<()> {
    fs::create_dir(layer.join("bin"))?;
    let plain = PROGRAM.trim_start_matches('/');
    fs::copy(own, layer.join(plain))?;
    for program in &PROGRAMS {
        let path = layer.join(program.path.trim_start_matches('/'));
        fs::copy(own, &path)?;
        fs::set_permissions(&path, Permissions::from_mode(program.mode))?;
        if let Some(capability) = program.capability {
            set_attribute(&path, "security.capability", &capability)?;
        }
    }
    Ok(())
}

fn odd_names(layer: &Path) -> Result<()> {
    let long = "n".repeat(255);
    let wide = "\u{1F980}".repeat(63) + "\u{e4}b";
    let names: [&[u8]; 14] = [
        long.as_bytes(),
        wide.as_bytes(),
        "\u{dc}n\u{ef}c\u{f6}d\u{e9} \u{65e5}\u{672c}\u{8a9e} \u{202e}rtl".as_bytes(),
        "combining e\u{301}".as_bytes(),
        b"not \xff\xfe utf-8",
        b"a\nnewline",
        b" blanks ",
        b"\\back\\slash",
        b"\x01\x1b[31m",
        b"...",
        b"-rf",
        b"*?[a]{b}$c`d`\"'",
        b".wh.not-a-whiteout",
        b"tab\t:comma,",
    ];
    let directory = layer.join("names");
    for name in names {
        write(&directory.join(OsStr::from_bytes(name)), name)?;
        let below = directory.join("directories").join(OsStr::from_bytes(name));
        write(&below.join("file"), b"")?;
    }
    let deep = directory.join(["deep/".repeat(40), "file".to_owned()].concat());
    write(&deep, b"")
}

fn odd_kinds(layer: &Path) -> Result<()> {
    let directory = layer.join("kinds");
    fs::create_dir(&directory)?;
    let at = |name: &str| directory.join(name);
    special(&at("fifo"), SFlag::S_IFIFO, 0o622, (0, 0))?;
    special(&at("zero"), SFlag::S_IFCHR, 0o666, (1, 5))?;
    special(&at("character"), SFlag::S_IFCHR, 0o600, (511, 70_000))?;
    special(&at("block"), SFlag::S_IFBLK, 0o660, (8, 1))?;
    drop(UnixListener::bind(at("socket"))?);
    fs::set_permissions(at("socket"), Permissions::from_mode(0o1777))?;
    for (name, target) in
        [("long", "t/".repeat(2047)), ("loop", "loop".into()), ("up", "../..".into())]
    {
        symlink(target, at(name))?;
    }
    symlink(OsStr::from_bytes(b"not \xff utf-8\n"), at("link"))?;
    write(&at("one"), b"linked")?;
    for name in ["two", "three"] {
        fs::hard_link(at("one"), at(name))?;
    }
    special(&at("fifo-one"), SFlag::S_IFIFO, 0o600, (0, 0))?;
    fs::hard_link(at("fifo-one"), at("fifo-two"))?;
    let sparse = File::create(at("sparse"))?;
    for place in [0, 1 << 20, 5 << 30] {
        sparse.write_all_at(b"data", place)?;
    }
    sparse.set_len(1 << 40)?;
    File::create(at("hole"))?.set_len(12_345)?;
    write(&at("empty"), b"")
}

fn odd_owners_modes_and_times(layer: &Path) -> Result<()> {
    for mode in [0, 0o1, 0o222, 0o1777, 0o2755, 0o2644, 0o4711, 0o4000, 0o6777, 0o7777] {
        let (file, directory) =
            (layer.join(format!("modes/file-{mode:o}")), layer.join(format!("modes/{mode:o}")));
        write(&file, b"mode")?;
        write(&directory.join("file"), b"mode")?;
        for path in [file, directory] {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
    }
    for (uid, gid) in
        [(12_345, 54_321), (65_534, 65_534), (1 << 31, 0), (u32::MAX - 1, u32::MAX - 1)]
    {
        let (file, link) =
            (layer.join(format!("owners/{uid}")), layer.join(format!("owners/link-{uid}")));
        write(&file, b"owner")?;
        symlink("nowhere", &link)?;
        lchown(&file, Some(uid), Some(gid))?;
        lchown(&link, Some(uid), Some(gid))?;
    }
    let times = [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (-2_000_000_000, 5),
        (1 << 32, 123_456_789),
        (10_000_000_000, 1),
    ];
    for (n, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let (file, link) =
            (layer.join(format!("times/{n}")), layer.join(format!("times/link-{n}")));
        write(&file, b"time")?;
        symlink("nowhere", &link)?;
        let time = TimeSpec::new(seconds, nanoseconds);
        for path in [&file, &link] {
            utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
    }
    Ok(())
}

fn extended_attributes(layer: &Path) -> Result<()> {
    let directory = layer.join("attributes");
    let file = directory.join("file");
    write(&file, b"attributes")?;
    let long = [0xa5; 2000];
    for path in [&file, &directory] {
        set_attribute(path, "user.empty", b"")?;
        set_attribute(path, "user.long", &long)?;
        set_attribute(path, &format!("user.{}", "n".repeat(250)), b"\0binary\xff")?;
        set_attribute(path, "user.\u{fc}n\u{ef}", b"text")?;
        set_attribute(path, "trusted.own", b"trusted")?;
    }
    write(&directory.join("capable"), b"no program")?;
    set_attribute(&directory.join("capable"), "security.capability", &NET_RAW)?;
    set_attribute(&file, "system.posix_acl_access", &acl())?;
    set_attribute(&directory, "system.posix_acl_default", &acl())
}

/// An ACL (version 2): the owner rw-, user 1000 r--, the group ---, a mask r--, others ---.
///
/// The mask is what a mode shows as the group's rights.
pub fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1000), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Makes a file, and the directories above it.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("a directory")?)?;
    fs::write(path, content).with_context(|| path.display().to_string())
}

fn special(path: &Path, kind: SFlag, mode: u32, (major, minor): (u64, u64)) -> Result<()> {
    mknod(path, kind, Mode::from_bits_truncate(mode), makedev(major, minor))
        .with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

pub fn set_attribute(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    let (to, named) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both strings end with a zero, and the value is as long as it is said to be.
    let set = unsafe {
        libc::lsetxattr(to.as_ptr(), named.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    Errno::result(set).map(drop).with_context(|| format!("{name} of {}", path.display()))
}

/// Whether it has this attribute.
pub fn has_attribute(path: &Path, name: &str) -> Result<bool> {
    let (of, named) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both strings end with a zero, and nothing is written where there is no room.
    let size = unsafe { libc::lgetxattr(of.as_ptr(), named.as_ptr(), std::ptr::null_mut(), 0) };
    match Errno::result(size) {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{name} of {}", path.display())),
    }
}
