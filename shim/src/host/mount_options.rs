//! Options of a mount as text, to flags and data of `mount(2)`.

use crate::error::{Error, Result};
use crate::oci::plan::Owners;
use nix::mount::MsFlags;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use std::path::{Path, PathBuf};

/// What `mount(2)` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags.
    pub flags: MsFlags,
    /// The file system's own options, comma-separated.
    pub data: String,
    /// Where relative paths in `data` start; none: there are none.
    pub base: Option<PathBuf>,
    /// Whose the files are in the user namespace of a container; none: whose they are on the host.
    pub owners: Option<Owners>,
}

/// The kernel copies one page of data and cuts the rest off.
const MAX_DATA: usize = 4095;

impl MountOptions {
    /// Sorts `options`. Layers of an overlay whose paths would take more room than there is, or whose files have
    /// other owners, become relative to the directory that they share.
    ///
    /// # Errors
    /// They are longer than the kernel takes, ask for a loop device, or have mappings that are none.
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        let (mut users, mut groups) = (Vec::new(), Vec::new());
        for option in options {
            match (set_by(option), cleared_by(option)) {
                (Some(flag), _) => flags.insert(flag),
                (_, Some(flag)) => flags.remove(flag),
                _ if option == "loop" => {
                    let text = "rootfs mount option \"loop\": for ext4 and EROFS images only";
                    return Err(Error::Unimplemented(text.into()));
                }
                _ if option.starts_with("uidmap=") => users = mappings(option)?,
                _ if option.starts_with("gidmap=") => groups = mappings(option)?,
                // Hints to tools, not for the kernel.
                _ if option.starts_with("X-") || option.starts_with("x-") => {}
                _ => data.push(option.as_str()),
            }
        }
        let owners = match (users.is_empty(), groups.is_empty()) {
            (true, true) => None,
            (false, false) => Some(Owners { users, groups, recursive: false }),
            _ => {
                let text = "rootfs mount options: mappings of users want those of groups, too";
                return Err(Error::InvalidArgument(text.into()));
            }
        };
        let whole = data.join(",");
        if whole.len() <= MAX_DATA && owners.is_none() {
            return Ok(Self { flags, data: whole, base: None, owners });
        }
        if let Some((base, short)) = with_relative_layers(&data)
            && short.len() <= MAX_DATA
        {
            return Ok(Self { flags, data: short, base: Some(base), owners });
        }
        if whole.len() <= MAX_DATA {
            return Ok(Self { flags, data: whole, base: None, owners });
        }
        Err(Error::InvalidArgument(format!(
            "rootfs mount options are {} bytes long, the kernel takes {MAX_DATA}",
            whole.len()
        )))
    }
}

/// The options with an overlay's lower directories relative to the nearest directory above all of them, and that.
/// None where there is no such option, a path is relative already, or one has a `:` in it, escaped.
fn with_relative_layers(options: &[&str]) -> Option<(PathBuf, String)> {
    const LAYERS: &str = "lowerdir=";
    let layers = options.iter().find_map(|option| option.strip_prefix(LAYERS))?;
    if layers.contains('\\') {
        return None;
    }
    let paths: Vec<&Path> = layers.split(':').map(Path::new).collect();
    let base = paths[0].ancestors().skip(1).find(|base| {
        base.is_absolute() && paths.iter().all(|path| path.starts_with(base) && path != base)
    })?;
    let relative: Vec<&str> =
        paths.iter().filter_map(|path| path.strip_prefix(base).ok()?.to_str()).collect();
    let relative = format!("{LAYERS}{}", relative.join(":"));
    let option = |option: &&str| {
        if option.starts_with(LAYERS) { relative.clone() } else { (*option).to_owned() }
    };
    Some((base.to_owned(), options.iter().map(option).collect::<Vec<_>>().join(",")))
}

/// The mappings of `uidmap=0:1000:100000`; several have commas between them.
fn mappings(option: &str) -> Result<Vec<LinuxIdMapping>> {
    let wrong = || Error::InvalidArgument(format!("rootfs mount option {option:?}"));
    let (_, list) = option.split_once('=').ok_or_else(wrong)?;
    let mapping = |text: &str| {
        let mut numbers = text.split(':').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let (container, host, size) = (next()?, next()?, next()?);
        if numbers.next().is_some() {
            return None;
        }
        let mapping = LinuxIdMappingBuilder::default().container_id(container).host_id(host);
        mapping.size(size).build().ok()
    };
    list.split(',').map(|text| mapping(text).ok_or_else(wrong)).collect()
}

fn set_by(option: &str) -> Option<MsFlags> {
    Some(match option {
        "ro" => MsFlags::MS_RDONLY,
        "bind" => MsFlags::MS_BIND,
        "rbind" => MsFlags::MS_BIND | MsFlags::MS_REC,
        "nosuid" => MsFlags::MS_NOSUID,
        "nodev" => MsFlags::MS_NODEV,
        "noexec" => MsFlags::MS_NOEXEC,
        "noatime" => MsFlags::MS_NOATIME,
        "nodiratime" => MsFlags::MS_NODIRATIME,
        "relatime" => MsFlags::MS_RELATIME,
        "strictatime" => MsFlags::MS_STRICTATIME,
        "sync" => MsFlags::MS_SYNCHRONOUS,
        "dirsync" => MsFlags::MS_DIRSYNC,
        "defaults" => MsFlags::empty(),
        _ => return None,
    })
}

fn cleared_by(option: &str) -> Option<MsFlags> {
    Some(match option {
        "rw" => MsFlags::MS_RDONLY,
        "suid" => MsFlags::MS_NOSUID,
        "dev" => MsFlags::MS_NODEV,
        "exec" => MsFlags::MS_NOEXEC,
        "atime" => MsFlags::MS_NOATIME,
        "diratime" => MsFlags::MS_NODIRATIME,
        "async" => MsFlags::MS_SYNCHRONOUS,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<MountOptions> {
        MountOptions::parse(&options.iter().map(|&o| o.into()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_data_are_sorted_and_the_last_word_counts() {
        let options = parse(&["ro", "nosuid", "workdir=/w", "rw", "X-mount.mkdir", "index=off"]);
        let expected = MountOptions {
            flags: MsFlags::MS_NOSUID,
            data: "workdir=/w,index=off".into(),
            base: None,
            owners: None,
        };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn what_the_kernel_would_cut_off_is_refused() {
        assert!(parse(&[&"l".repeat(MAX_DATA)]).is_ok());
        assert!(parse(&[&"l".repeat(MAX_DATA + 1)]).is_err());
    }

    #[test]
    fn many_layers_are_told_from_where_they_all_are() {
        let lowers = |first: &str| {
            let layer = |n| format!(":/var/lib/snapshots/{n}/fs");
            format!("lowerdir={first}{}", (1..200).map(layer).collect::<String>())
        };
        let options =
            parse(&["index=off", &lowers("/var/lib/snapshots/0/fs"), "upperdir=/u"]).unwrap();
        assert_eq!(options.base, Some("/var/lib/snapshots".into()));
        assert!(options.data.starts_with("index=off,lowerdir=0/fs:1/fs:2/fs:"), "{}", options.data);
        assert!(options.data.ends_with(":199/fs,upperdir=/u"), "{}", options.data);
        // A layer elsewhere moves the base up; with one inside another they are as they are below the base.
        assert_eq!(parse(&[&lowers("/var/lib/a")]).unwrap().base, Some("/var/lib".into()));
        assert_eq!(parse(&[&lowers("/var/lib/snapshots")]).unwrap().base, Some("/var/lib".into()));
        for odd in ["relative/path", "/var/lib/a\\:b"] {
            assert!(parse(&[&lowers(odd)]).is_err(), "{odd}");
        }
        assert!(parse(&["upperdir=/u", &"l".repeat(MAX_DATA)]).is_err());
    }

    #[test]
    fn mappings_are_for_mounts_and_not_for_the_kernel() {
        let maps = ["uidmap=0:1000:10,10:5000:5", "gidmap=0:2000:15"];
        let layers = ["lowerdir=/s/1/fs:/s/2/fs", "upperdir=/s/3/fs"];
        let options = parse(&[&layers[..], &maps[..]].concat()).unwrap();
        assert_eq!(options.data, "lowerdir=1/fs:2/fs,upperdir=/s/3/fs");
        assert_eq!(options.base, Some("/s".into()));
        let owners = options.owners.unwrap();
        let numbers = |m: &LinuxIdMapping| (m.container_id(), m.host_id(), m.size());
        assert_eq!(
            owners.users.iter().map(numbers).collect::<Vec<_>>(),
            [(0, 1000, 10), (10, 5000, 5)]
        );
        assert_eq!(owners.groups.iter().map(numbers).collect::<Vec<_>>(), [(0, 2000, 15)]);
        for odd in ["uidmap=", "uidmap=0:1", "uidmap=0:1:2:3", "uidmap=a:1:2", "uidmap=0:1:2"] {
            assert!(parse(&[odd]).is_err(), "{odd}");
        }
    }
}
