//! The file server of a sandbox: serves one directory to one virtual machine over virtio-fs.
//!
//! It inherits a connected vhost-user socket whose other end the VMM holds, and ends when that end is
//! closed: so it cannot outlive its machine. File operations are virtiofsd's, used as a library; the
//! vhost-user device around them is ours, because it works on a connected socket, in a single thread,
//! and answers a broken queue by stopping that queue.
//!
//! The program calls [`run`]; what else is public is for the fuzz targets of the guest's and the VMM's requests.

mod confine;
mod device;
mod file_system;
mod live;
mod logger;
mod memory;
mod queue;
mod serve;

pub use confine::own_descriptors;
pub use file_system::{Files, open};
pub use live::Roots;
pub use memory::{Memory, Regions};
pub use queue::{Progress, RequestQueue};
pub use serve::serve;

use anyhow::{Context, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Confines the process to the directory, and serves it until the other end of the vhost-user socket is closed.
///
/// # Errors
/// It is no such socket, the process can't be confined, or the VMM breaks the protocol.
pub fn run(socket: OwnedFd, shared_dir: &Path, roots: Roots) -> Result<()> {
    logger::install();
    let fd = socket.as_raw_fd();
    jail::close_other_fds(&[fd])?;
    let socket = UnixStream::from(socket);
    socket
        .peer_addr()
        .with_context(|| format!("descriptor {fd} is not a connected unix socket"))?;
    let own_descriptors = own_descriptors()?;
    confine::enter_jail(shared_dir)
        .with_context(|| format!("cannot confine to {}", shared_dir.display()))?;
    let files = open(own_descriptors, roots)?;
    confine::syscall_filter()?.apply()?;
    serve(socket, files)
}
