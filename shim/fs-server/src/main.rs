//! The file server of a sandbox: serves one directory to one virtual machine over virtio-fs.
//!
//! It inherits a connected vhost-user socket whose other end the VMM holds, and ends when that end is
//! closed: so it cannot outlive its machine. File operations are virtiofsd's, used as a library; the
//! vhost-user device around them is ours, because it works on a connected socket, in a single thread,
//! and answers a broken queue by stopping that queue.

mod confine;
mod device;
mod file_system;
mod live;
mod logger;
mod queue;
mod serve;

use anyhow::{Context, Result};
use clap::Parser;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    logger::install();
    jail::close_other_fds(&[arguments.fd])?;
    // SAFETY: the caller passes this descriptor for us to own; nothing else in the process uses it.
    let socket = unsafe { UnixStream::from_raw_fd(arguments.fd) };
    socket
        .peer_addr()
        .with_context(|| format!("descriptor {} is not a connected unix socket", arguments.fd))?;
    let own_descriptors = confine::own_descriptors()?;
    confine::enter_jail(&arguments.shared_dir)
        .with_context(|| format!("cannot confine to {}", arguments.shared_dir.display()))?;
    let files = file_system::open(own_descriptors)?;
    confine::syscall_filter()?.apply()?;
    serve::serve(socket, files)
}
