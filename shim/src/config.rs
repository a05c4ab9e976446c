//! The configuration file as it is written; [`crate::settings`] decides what it means.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the configuration is read from unless the caller names another file.
pub const DEFAULT_PATH: &str = "/etc/kata-like/config.toml";

/// Largest configuration file, bytes.
const MAX_LEN: u64 = 1 << 20;

/// All of the file. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The virtual machine.
    pub machine: Machine,
    /// Where the parts are.
    pub paths: Paths,
    /// The confinement of the VMM and the file server.
    pub jail: Jail,
    /// What is done on the host.
    pub host: Host,
    /// The containers' root file systems.
    pub root: Root,
    /// The network of a pod, or of a container.
    pub network: Network,
}

/// `[machine]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Number of vCPUs.
    pub vcpus: Option<u32>,
    /// Guest memory, MiB.
    pub memory_mib: Option<u64>,
    /// Most vCPUs that a machine gets when its containers' limits ask for more than `vcpus`.
    pub max_vcpus: Option<u32>,
    /// The same for memory, MiB.
    pub max_memory_mib: Option<u64>,
    /// Most disks and network interfaces that a machine has at once: block devices, disk images and interfaces of its
    /// containers.
    pub max_disks: Option<u32>,
    /// Whether containers without a CPU limit get more vCPUs when they use those that they have.
    pub vcpus_by_use: Option<bool>,
    /// Whether guests may run virtual machines of their own.
    pub nested: Option<bool>,
    /// Guest kernel.
    pub kernel: Option<PathBuf>,
    /// Guest image.
    pub image: Option<PathBuf>,
    /// Words added to the kernel command line.
    pub kernel_params: Option<String>,
    /// Seconds from the start of the VMM until its agent has reported in.
    pub start_timeout_seconds: Option<u64>,
}

/// `[paths]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// The VMM's program.
    pub vmm: Option<PathBuf>,
    /// The file server's program.
    pub file_server: Option<PathBuf>,
    /// The program of the processes that stand for a pod's containers.
    pub stand_in: Option<PathBuf>,
    /// Directory of the sandboxes' state.
    pub state: Option<PathBuf>,
}

/// `[jail]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jail {
    /// The first of the uids, and gids, that VMMs get: each sandbox one of its own. They are to be nobody else's.
    pub first_uid: Option<u32>,
    /// How many there are, which is the most sandboxes at once.
    pub uids: Option<u32>,
    /// Whether machines never share a core at the same time, where cores have several threads.
    pub core_scheduling: Option<bool>,
}

/// `[host]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Whether a sandbox's processes go where `linux.cgroupsPath` says; if not, they stay where their maker is.
    pub cgroups: Option<bool>,
}

/// `[root]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Root {
    /// Whether others than its container change a root file system while it runs.
    pub shared: Option<bool>,
    /// Where it goes what a container writes to its root file system.
    pub writes: Option<RootWrites>,
    /// Size of the disks for that, MiB.
    pub disk_mib: Option<u64>,
}

/// `[network]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Whether the host's kernel serves guests' interfaces.
    pub vhost_net: Option<bool>,
}

/// `writes` of `[root]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootWrites {
    /// As `Disk` for containers of Kubernetes' pods, if `mke2fs` is there; otherwise as `Snapshot`.
    Auto,
    /// To the snapshot, where whoever looks at it finds it.
    Snapshot,
    /// To a disk of the guest's own, which goes with the container.
    Disk,
}

impl Config {
    /// Reads `path`.
    ///
    /// # Errors
    /// The file can't be read, is longer than 1 MiB, isn't TOML or has an unknown key; the text names both.
    pub fn load(path: &Path) -> Result<Self> {
        let open = Error::path("read the configuration file", path);
        let text = match std::fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_LEN => {
                return Err(Error::InvalidArgument(format!(
                    "configuration file {} is longer than {MAX_LEN} bytes",
                    path.display()
                )));
            }
            Ok(_) => std::fs::read_to_string(path).map_err(open)?,
            Err(error) => return Err(open(error)),
        };
        toml::from_str(&text).map_err(|error| {
            Error::InvalidArgument(format!("configuration file {}: {error}", path.display()))
        })
    }

    /// Reads [`DEFAULT_PATH`], or takes the defaults if there is no such file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_default() -> Result<Self> {
        let path = Path::new(DEFAULT_PATH);
        if path.exists() { Self::load(path) } else { Ok(Self::default()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn an_unknown_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[machine]\nvcpu = 2\n").unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("vcpu") && error.contains("c.toml"), "{error}");
    }

    /// With every key told, each by its default.
    const SAMPLE: &str = include_str!("../config.sample.toml");

    #[test]
    fn the_sample_names_every_key_and_its_default() {
        let told: String = SAMPLE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|key| key.contains(" = ")).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let config: Config = toml::from_str(&told).unwrap();
        // A key that is new has to be named here to compile, and there to pass.
        let Config { machine, paths, jail, host, root, network } = config.clone();
        let Machine {
            vcpus,
            memory_mib,
            max_vcpus,
            max_memory_mib,
            max_disks,
            kernel,
            image,
            kernel_params,
            start_timeout_seconds,
            nested,
            vcpus_by_use,
        } = machine;
        let Paths { vmm, file_server, stand_in, state } = paths;
        let Jail { first_uid, uids, core_scheduling } = jail;
        let Host { cgroups } = host;
        let Root { shared, writes, disk_mib } = root;
        let Network { vhost_net } = network;
        let numbers = [vcpus, max_vcpus, max_disks, first_uid, uids];
        let switches = [nested, vcpus_by_use, core_scheduling, cgroups, shared, vhost_net];
        assert!(numbers.iter().all(Option::is_some) && switches.iter().all(Option::is_some));
        assert!(kernel_params.is_some() && writes.is_some() && disk_mib.is_some());
        assert!([memory_mib, max_memory_mib, start_timeout_seconds].iter().all(Option::is_some));
        assert!([kernel, image, vmm, file_server, stand_in, state].iter().all(Option::is_some));

        // The maxima are this host's.
        let default = Settings::resolve(Config::default()).unwrap();
        let told = Settings::resolve(config).unwrap();
        let (max_vcpus, max_memory_mib) = (default.max_vcpus, default.max_memory_mib);
        assert_eq!(Settings { max_vcpus, max_memory_mib, ..told }, default);
        assert_eq!(toml::from_str::<Config>(SAMPLE).unwrap(), Config::default());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nowhere/c.toml")).unwrap_err().chain();
        assert!(error.contains("/nowhere/c.toml"), "{error}");
    }
}
