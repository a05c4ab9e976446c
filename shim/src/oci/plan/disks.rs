//! Which block devices and disk images of the host a container gets as disks of its machine, and what of them is
//! mounted in the guest, by the guest's kernel: the host's never reads a file system that a container wrote.
//!
//! - A root file system that lies on one: a snapshotter's mount of a device or an image, alone.
//! - The layers of one, as EROFS images ([`layers`]), and what is written above them: the guest makes the overlay. All
//!   layers are one disk, which any number of machines read; the host's page cache has them once.
//! - Where the configuration says so, a disk that is made for it, for what the container writes to a root file system
//!   that the host shows; it goes with the container.
//! - The same as the first for a mount of the spec's; it becomes a bind of what the guest has mounted.
//! - A bind of a block device; it becomes one of the node that the guest makes for the disk.
//! - Block devices in `linux.devices`, except with leave for every device: such privileged containers are given
//!   all that the host has, and get none. A rule for a block device that the container does not get is left out.

use super::RootfsMount;
use super::host::{Host, Kind, Numbers};
use super::layers::{self, Layers};
use crate::error::{Error, Result};
use crate::guest::paths as guest_paths;
use crate::oci::bundle::is_bind;
use crate::oci::pod::Part;
use oci_spec::runtime::{
    Linux, LinuxBlockIo, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources,
    LinuxThrottleDevice, Mount,
};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// File systems that the guest's kernel has for disks.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];

/// Of an ext4 most of which is never used: tables of inodes that are not there yet read as zeros, and which blocks of a
/// group are free is looked up when some are wanted; in the background the kernel would get to know it of all groups, 12 KiB
/// of the guest's memory each, 10 MiB with 100 GiB.
const AS_NEEDED: [&str; 2] = ["noinit_itable", "no_prefetch_block_bitmaps"];

/// Options of a mount that its bind has too.
const PER_MOUNT: [&str; 7] = ["ro", "rro", "nosuid", "nodev", "noexec", "noatime", "relatime"];

/// A disk of the container's; the guest has its node at [`guest_paths::disk`], by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is on it.
    pub source: Source,
    /// The guest can't write to it, whatever it does.
    pub read_only: bool,
    /// There is a file system on it that the guest mounts, so nobody else may have it mounted.
    pub exclusive: bool,
    /// By which the spec names it; (0, 0): it does not.
    pub numbers: Numbers,
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A block device or a regular file.
    One(PathBuf),
    /// Regular files, at most [`protocol::control::MAX_FDS`], one behind the other, each a partition of its own:
    /// image layers, which so take one of the machine's slots together. The disk is read-only. A file system in the file
    /// with index N, from 0, is mounted by a [`DiskMount`] whose `part` is N.
    Several(Vec<PathBuf>),
    /// It is made, with an empty ext4.
    Blank {
        /// Where it takes its room.
        directory: PathBuf,
        /// Its size.
        bytes: u64,
        /// Whether it has a name there, [`protocol::ports::ROOT_DISK`], so that whoever counts what the directory takes
        /// counts it; else it has none, and is gone with the last who has it open.
        named: bool,
    },
}

/// Where it goes what containers write to root file systems that the host shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// To the host's snapshot.
    ToSnapshot,
    /// To a disk of so many bytes of the guest's own.
    ToDisk(u64),
    /// The same for containers of Kubernetes' pods, whose snapshot nobody looks at but to see how large it is; of others
    /// to the snapshot.
    ToDiskInPods(u64),
}

impl Writes {
    /// How large the disk of such a container is, if it has one, and whether that has a name.
    fn disk(self, part: Part) -> Option<(u64, bool)> {
        match self {
            Self::ToDisk(bytes) => Some((bytes, false)),
            Self::ToDiskInPods(bytes) if part == Part::Member => Some((bytes, true)),
            Self::ToSnapshot | Self::ToDiskInPods(_) => None,
        }
    }
}

impl Source {
    /// A path that says where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::One(path) | Self::Blank { directory: path, .. } => path,
            Self::Several(paths) => paths.first().map_or(Path::new(""), PathBuf::as_path),
        }
    }
}

/// What the guest mounts, at [`guest_paths::disk_mount`], by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMount {
    /// Index of the disk.
    pub disk: usize,
    /// Of a disk of [`Source::Several`] the index of the file; of others there is none.
    pub part: Option<usize>,
    /// Type of the file system.
    pub fstype: String,
    /// As in fstab.
    pub options: Vec<String>,
}

/// The disks of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disks {
    /// In the order in which they are attached.
    pub disks: Vec<Disk>,
    /// In the order in which they are mounted.
    pub mounts: Vec<DiskMount>,
    /// The root file system, where the guest puts it together.
    pub root: Option<Overlay>,
}

/// A root file system of several, one above the other, at [`guest_paths::covered_root`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Which of the mounts are below, the top one first; none: what the host shows is.
    pub lower: Range<usize>,
    /// What takes what is written.
    pub upper: Upper,
    /// More options of it, as in fstab.
    pub options: Vec<String>,
}

/// The uppermost of an [`Overlay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// There is none: nobody can write.
    None,
    /// The guest's memory: for the mount points of a root that is read-only once they are made.
    Memory,
    /// That of the mounts, of a disk that is made for the container.
    Passing(usize),
    /// That of the mounts, of a disk that outlives the container.
    Lasting(usize),
}

impl Disks {
    /// Takes a root file system of image layers out of `rootfs`; where the guest has it. What is written to it goes to the
    /// snapshotter's image, which is a disk of the guest's like the one that is made elsewhere, or to such a one where there
    /// is no image, or all are to have one; if it is `read_only` to memory.
    ///
    /// # Errors
    /// See [`Layers::of`]; or what is written would be in a directory of the host's.
    pub fn take_layers(
        &mut self,
        id: &str,
        rootfs: &mut Vec<RootfsMount>,
        (writes, part): (Writes, Part),
        read_only: bool,
        host: &dyn Host,
    ) -> Result<Option<PathBuf>> {
        let Some(Layers { images, upper, options }) = Layers::of(rootfs)? else { return Ok(None) };
        let first = self.mounts.len();
        let paths: Vec<_> = images.iter().map(|(path, _)| path.clone()).collect();
        let (disk, is_one) = (self.disks.len(), paths.len() == 1);
        let source = if is_one { Source::One(paths[0].clone()) } else { Source::Several(paths) };
        self.disks.push(Disk { source, read_only: true, exclusive: true, numbers: (0, 0) });
        let of_layer = |(part, (_, options)): (usize, (_, Vec<String>))| {
            let part = (!is_one).then_some(part);
            DiskMount { disk, part, fstype: "erofs".into(), options }
        };
        self.mounts.extend(images.into_iter().enumerate().map(of_layer));
        let lower = first..self.mounts.len();
        let upper = match (upper, writes) {
            (layers::Upper::None, _) => Upper::None,
            _ if read_only => Upper::Memory,
            (layers::Upper::Image(path), Writes::ToDisk(bytes)) => {
                let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
                Upper::Passing(self.add_blank(directory, bytes, false))
            }
            (layers::Upper::Image(path), _) => {
                let kind = host.kind(&path);
                // The snapshotter's image is sparse: what of it was never written reads as zeros.
                self.mount(id, (path, kind), "ext4", &words(&AS_NEEDED));
                Upper::Lasting(self.mounts.len() - 1)
            }
            (layers::Upper::Directory(directory), writes) => match writes.disk(part) {
                Some((bytes, named)) => Upper::Passing(self.add_blank(directory, bytes, named)),
                None => return Err(above_layers(&directory)),
            },
        };
        self.root = Some(Overlay { lower, upper, options });
        rootfs.clear();
        Ok(Some(guest_paths::covered_root(id)))
    }

    /// Takes a root file system that lies on a disk out of `rootfs`; where the guest has it.
    pub fn take_root(
        &mut self,
        id: &str,
        rootfs: &mut Vec<RootfsMount>,
        host: &dyn Host,
    ) -> Option<PathBuf> {
        let [layer] = &rootfs[..] else { return None };
        let source = PathBuf::from(&layer.source);
        let known = FILE_SYSTEMS.contains(&&*layer.fstype) && layer.target.is_empty();
        // Owners are mapped by mounts of the host's.
        let mapped = layer.options.iter().any(|option| option.starts_with("uidmap="));
        let kind = host.kind(&source);
        if !known || mapped || kind == Kind::Other {
            return None;
        }
        let at = self.mount(id, (source, kind), &layer.fstype, &layer.options);
        rootfs.clear();
        Some(at)
    }

    /// Has what is written to a root file system that the host shows written to a disk instead, which is made where the
    /// host would have put it, or if it is `read_only` to memory; where the guest has both as one. None: it is to be the
    /// host's, it can't be written to, or where that would be is not known.
    pub fn cover_root(
        &mut self,
        id: &str,
        rootfs: &mut [RootfsMount],
        (writes, part): (Writes, Part),
        read_only: bool,
    ) -> Option<PathBuf> {
        let (bytes, named) = writes.disk(part)?;
        let [layer] = rootfs else { return None };
        if layer.options.iter().any(|option| option == "ro") {
            return None;
        }
        let upper = layer.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let is_bind = layer.options.iter().any(|option| option == "bind" || option == "rbind");
        // In a directory that is bound a name would be one of the container's own; without it nobody counts the disk.
        if named && upper.is_none() {
            return None;
        }
        let directory = upper.or(is_bind.then_some(&*layer.source))?.into();
        layer.options.retain(|option| option != "rw");
        // An overlay can't have below it what is mounted there.
        layer
            .options
            .iter_mut()
            .filter(|option| *option == "rbind")
            .for_each(|o| *o = "bind".into());
        layer.options.push("ro".into());
        let upper = if read_only {
            Upper::Memory
        } else {
            Upper::Passing(self.add_blank(directory, bytes, named))
        };
        self.root = Some(Overlay { lower: 0..0, upper, options: Vec::new() });
        Some(guest_paths::covered_root(id))
    }

    /// A disk that is made in a directory, and its mount; gives that one's index.
    fn add_blank(&mut self, directory: PathBuf, bytes: u64, named: bool) -> usize {
        let (read_only, exclusive) = (false, true);
        let source = Source::Blank { directory, bytes, named };
        let disk = self.add(Disk { source, read_only, exclusive, numbers: (0, 0) });
        // Nobody waits for the host's disk. What is deleted goes back to it now and then.
        let options = words(&[&AS_NEEDED[..], &["nobarrier", "noatime", "x-trim"]].concat());
        self.mounts.push(DiskMount { disk, part: None, fstype: "ext4".into(), options });
        self.mounts.len() - 1
    }

    /// Changes a mount of the spec's that is on a disk, or is one; `false`: it is none.
    ///
    /// # Errors
    /// [`Error::Unimplemented`] for a file system that the guest's kernel has not.
    pub fn take_mount(&mut self, id: &str, mount: &mut Mount, host: &dyn Host) -> Result<bool> {
        let Some(source) = mount.source().clone() else { return Ok(false) };
        let options = mount.options().clone().unwrap_or_default();
        let fstype = mount.typ().clone().filter(|_| !is_bind(mount));
        let fstype = fstype.unwrap_or_else(|| "bind".to_owned());
        let kind = host.kind(&source);
        let at = match kind {
            Kind::Block(numbers) if fstype == "bind" => {
                let read_only = options.iter().any(|option| option == "ro" || option == "rro");
                let source = Source::One(source);
                let index = self.add(Disk { source, read_only, exclusive: false, numbers });
                mount.set_source(Some(guest_paths::disk(id, index)));
                return Ok(true);
            }
            Kind::File | Kind::Block(_) if FILE_SYSTEMS.contains(&&*fstype) => {
                self.mount(id, (source, kind), &fstype, &options)
            }
            Kind::Block(_) => {
                let to = mount.destination().display();
                return Err(Error::Unimplemented(format!(
                    "config.json: the mount on {to}: the guest mounts {} from block devices, not {fstype:?}",
                    FILE_SYSTEMS.join(" and ")
                )));
            }
            _ => return Ok(false),
        };
        let mut options: Vec<_> =
            options.into_iter().filter(|option| PER_MOUNT.contains(&&**option)).collect();
        options.push("bind".to_owned());
        mount.set_typ(Some("bind".to_owned())).set_source(Some(at)).set_options(Some(options));
        Ok(true)
    }

    /// Takes the block devices of `linux.devices`, and leaves out the rules for others.
    pub fn take_devices(&mut self, linux: &mut Linux, host: &dyn Host) {
        let rules = linux.resources().as_ref().and_then(|r| r.devices().clone());
        let rules = rules.unwrap_or_default();
        if !rules.iter().any(is_for_all) {
            let devices = linux.devices().iter().flatten();
            for device in devices.filter(|d| d.typ() == LinuxDeviceType::B) {
                let numbers = numbers(device.major(), device.minor());
                let source = numbers.and_then(|numbers| host.block_device(numbers));
                // One that the host has not is left out as any other node that would lead nowhere.
                let (Some(numbers), Some(source)) = (numbers, source) else { continue };
                let read_only = !rules.iter().any(|rule| {
                    names(rule) == Some(numbers)
                        && rule.allow()
                        && rule.access().as_ref().is_none_or(|access| access.contains('w'))
                });
                let source = Source::One(source);
                self.add(Disk { source, read_only, exclusive: false, numbers });
            }
        }
        let of_disk = |rule: &LinuxDeviceCgroup| match rule.major() {
            Some(_) => names(rule).is_some_and(|numbers| self.has(numbers)),
            None => true,
        };
        if let Some(rules) = linux.resources_mut().as_mut().and_then(|r| r.devices_mut().as_mut()) {
            rules.retain(|rule| rule.typ() != Some(LinuxDeviceType::B) || of_disk(rule));
        }
    }

    /// Keeps those limits of block I/O that are for one of these, or for all.
    pub fn retain_limits(&self, resources: &mut LinuxResources) {
        let of_disk =
            |limit: &LinuxThrottleDevice| limited(limit).is_some_and(|numbers| self.has(numbers));
        let kept = |list: Vec<_>| list.into_iter().filter(of_disk).collect();
        resources.set_block_io(resources.block_io().as_ref().map(|all| block_io(all, &kept)));
    }

    /// Whether it is the node of one of these.
    pub fn has_device(&self, device: &LinuxDevice) -> bool {
        device.typ() == LinuxDeviceType::B
            && numbers(device.major(), device.minor()).is_some_and(|numbers| self.has(numbers))
    }

    fn has(&self, numbers: Numbers) -> bool {
        self.disks.iter().any(|disk| disk.numbers == numbers)
    }

    /// Gives its index; one that the spec names twice is there once.
    fn add(&mut self, disk: Disk) -> usize {
        let named = disk.numbers != (0, 0);
        let same = self.disks.iter().position(|d| named && d.numbers == disk.numbers);
        if let Some(index) = same {
            self.disks[index].read_only &= disk.read_only;
            self.disks[index].exclusive |= disk.exclusive;
            return index;
        }
        self.disks.push(disk);
        self.disks.len() - 1
    }

    fn mount(
        &mut self,
        id: &str,
        (source, kind): (PathBuf, Kind),
        fstype: &str,
        options: &[String],
    ) -> PathBuf {
        let numbers = if let Kind::Block(numbers) = kind { numbers } else { (0, 0) };
        let read_only = fstype == "erofs" || options.iter().any(|option| option == "ro");
        // Where it is attached there is no loop device.
        let options = options.iter().filter(|option| *option != "loop").cloned().collect();
        let source = Source::One(source);
        let disk = self.add(Disk { source, read_only, exclusive: true, numbers });
        self.mounts.push(DiskMount { disk, part: None, fstype: fstype.to_owned(), options });
        guest_paths::disk_mount(id, self.mounts.len() - 1)
    }
}

/// A directory of the host's can't be above layers that only the guest has mounted.
fn above_layers(directory: &Path) -> Error {
    Error::FailedPrecondition(format!(
        "root file system: what the container writes would be in {}, a directory of the host's, above layers that are \
         its guest's: set default_size for containerd's EROFS snapshotter, or root.writes = \"disk\"",
        directory.display()
    ))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The weight, and the rates, each list changed. Weights of single devices and leaf weights mean nothing in a guest, whose
/// kernel has no scheduler of requests that knows them.
pub fn block_io(
    limits: &LinuxBlockIo,
    change: &dyn Fn(Vec<LinuxThrottleDevice>) -> Vec<LinuxThrottleDevice>,
) -> LinuxBlockIo {
    let changed = |list: &Option<Vec<_>>| {
        list.clone().map(change).filter(|list: &Vec<LinuxThrottleDevice>| !list.is_empty())
    };
    let mut kept = LinuxBlockIo::default();
    kept.set_throttle_read_bps_device(changed(limits.throttle_read_bps_device()))
        .set_throttle_write_bps_device(changed(limits.throttle_write_bps_device()))
        .set_throttle_read_iops_device(changed(limits.throttle_read_iops_device()))
        .set_throttle_write_iops_device(changed(limits.throttle_write_iops_device()))
        .set_weight(limits.weight());
    kept
}

/// The disk that a limit is for.
pub fn limited(limit: &LinuxThrottleDevice) -> Option<Numbers> {
    numbers(limit.major(), limit.minor())
}

fn numbers(major: i64, minor: i64) -> Option<Numbers> {
    Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
}

/// The block device that a rule names.
fn names(rule: &LinuxDeviceCgroup) -> Option<Numbers> {
    let block = rule.typ() == Some(LinuxDeviceType::B);
    block.then(|| numbers(rule.major()?, rule.minor()?)).flatten()
}

/// A rule that gives leave for every device, as engines write it for privileged containers.
fn is_for_all(rule: &LinuxDeviceCgroup) -> bool {
    let any_type = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    rule.allow() && any_type && rule.major().is_none_or(|major| major < 0)
}
