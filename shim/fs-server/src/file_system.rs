//! How the directory is served: what is cached for how long, which features the guest is offered.

use crate::live::LiveMounts;
use anyhow::{Context, Result};
use std::fs::File;
use std::time::Duration;
use virtiofsd::passthrough::{CachePolicy, Config, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;

/// Descriptors that are not the guest's files: the socket, one for each memory region, and those that
/// are opened for a moment.
const OWN_DESCRIPTORS: u64 = 128;

/// How long the guest takes names and attributes for granted, but for bind mounts: see [`crate::live`].
const VALIDITY: Duration = Duration::from_secs(1);

/// Answers FUSE requests.
pub(crate) type Files = Server<LiveMounts>;

/// Serves the root directory of this (confined) process.
pub(crate) fn open(own_descriptors: File) -> Result<Files> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let config = Config {
        entry_timeout: VALIDITY,
        attr_timeout: VALIDITY,
        // Pages stay in the guest's cache when a file is opened again, unless its size or time of change
        // turned out to be different, which is looked at every VALIDITY: with Auto, each exec of a program
        // would read it anew.
        cache_policy: CachePolicy::Always,
        root_dir: "/".into(),
        xattr: true,
        posix_acl: NegotiationMode::Auto,
        proc_sfd_rawfd: Some(own_descriptors),
        // Files of bind mounts are not cached, and can be mapped into memory all the same.
        allow_mmap: true,
        // Each mount gets a device number of its own in the guest, so inode numbers don't collide.
        announce_submounts: true,
        readdirplus: true,
        guest_fd_limit: limit.unwrap_or(u64::MAX).saturating_sub(OWN_DESCRIPTORS),
        ..Config::default()
    };
    let files = PassthroughFs::new(config).context("cannot open the shared directory")?;
    Ok(Server::new(LiveMounts(files)))
}
