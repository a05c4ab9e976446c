//! The file server's process.

use anyhow::Result;
use clap::Parser;
use file_server::Roots;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Serve a directory to a virtual machine over virtio-fs.
#[derive(Debug, Parser)]
#[command(name = "kata-like-fs", version)]
struct Arguments {
    /// The directory. What is mounted beneath it later is served too, if its mount is a shared one.
    #[arg(long, value_name = "DIR")]
    shared_dir: PathBuf,
    /// The descriptor of a connected vhost-user socket
    #[arg(long, value_name = "FD", default_value_t = 3, value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: RawFd,
    /// That of a second one, at which the directory is served as root file systems to which nobody writes
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    layers_fd: Option<RawFd>,
    /// Others than the machine change its containers' root file systems while they run
    #[arg(long)]
    shared_roots: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let fds: Vec<RawFd> = [Some(arguments.fd), arguments.layers_fd].into_iter().flatten().collect();
    jail::close_other_fds(&fds)?;
    // SAFETY: the caller passes these descriptors for us to own; nothing else in the process uses them.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    let roots = if arguments.shared_roots { Roots::Shared } else { Roots::Guests };
    let layers = arguments.layers_fd.map(own);
    file_server::run(own(arguments.fd), layers, &arguments.shared_dir, roots)
}
