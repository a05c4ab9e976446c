//! Options of a mount as text, to flags and data of `mount(2)`.

use crate::error::{Error, Result};
use nix::mount::MsFlags;

/// What `mount(2)` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags.
    pub flags: MsFlags,
    /// The file system's own options, comma-separated.
    pub data: String,
}

/// The kernel copies one page of data and cuts the rest off.
const MAX_DATA: usize = 4095;

impl MountOptions {
    /// Sorts `options`.
    ///
    /// # Errors
    /// They are longer than the kernel takes, or ask for a loop device.
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options {
            match (set_by(option), cleared_by(option)) {
                (Some(flag), _) => flags.insert(flag),
                (_, Some(flag)) => flags.remove(flag),
                _ if option == "loop" => {
                    let text = "rootfs mount option \"loop\": for ext4 and EROFS images only";
                    return Err(Error::Unimplemented(text.into()));
                }
                // Hints to tools, not for the kernel.
                _ if option.starts_with("X-") || option.starts_with("x-") => {}
                _ => data.push(option.as_str()),
            }
        }
        let data = data.join(",");
        if data.len() > MAX_DATA {
            return Err(Error::InvalidArgument(format!(
                "rootfs mount options are {} bytes long, the kernel takes {MAX_DATA}",
                data.len()
            )));
        }
        Ok(Self { flags, data })
    }
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
        let expected =
            MountOptions { flags: MsFlags::MS_NOSUID, data: "workdir=/w,index=off".into() };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn what_the_kernel_would_cut_off_is_refused() {
        assert!(parse(&[&"l".repeat(MAX_DATA)]).is_ok());
        assert!(parse(&[&"l".repeat(MAX_DATA + 1)]).is_err());
    }
}
