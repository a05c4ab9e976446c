//! The file server of a sandbox: serves one directory to one virtual machine over virtio-fs.
//!
//! It inherits connected vhost-user sockets whose other ends the VMM holds, and ends when such an end is
//! closed: so it cannot outlive its machine. File operations are virtiofsd's, used as a library; the
//! vhost-user device around them is ours, because it works on a connected socket, in a single thread,
//! and answers a broken queue by stopping that queue. The directory is served twice, as a file system for everything
//! (`live`) and as one for root file systems to which nobody writes (`layers`), each by a thread of its own; what waits for the host's disk
//! is carried out by two more (`slow`).
//!
//! The program calls [`run`]; what else is public is for the fuzz targets of the guest's and the VMM's requests.

mod confine;
mod device;
mod file_system;
mod layers;
mod listing;
mod live;
mod logger;
mod memory;
mod no_handle;
mod queue;
mod queue_error;
mod serve;
mod slow;
mod unasked;

pub use confine::own_descriptors;
pub use file_system::{Files, open, open_layers};
pub use live::Roots;
pub use memory::{Memory, Regions};
pub use queue::{Progress, RequestQueue};
pub use serve::serve;
pub use slow::Slow;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

/// Confines the process to the directory, and serves it until the other end of a vhost-user socket is closed: of
/// `socket` for everything, of `layers`, if there is one, for root file systems to which nobody writes.
///
/// # Errors
/// One is no such socket, the process can't be confined, or the VMM breaks the protocol.
pub fn run(
    socket: OwnedFd,
    layers: Option<OwnedFd>,
    shared_dir: &Path,
    roots: Roots,
) -> Result<()> {
    logger::install();
    let fds: Vec<_> = [Some(&socket), layers.as_ref()].into_iter().flatten().collect();
    let fds: Vec<_> = fds.into_iter().map(AsRawFd::as_raw_fd).collect();
    jail::close_other_fds(&fds)?;
    let (socket, layers) = (connected(socket)?, layers.map(connected).transpose()?);
    let own_descriptors = own_descriptors()?;
    confine::enter_jail(shared_dir)
        .with_context(|| format!("cannot confine to {}", shared_dir.display()))?;
    if let Some(socket) = layers {
        let files = open_layers(own_descriptors.try_clone().context("cannot open /proc/self/fd")?)?;
        let (confined, is_confined) = mpsc::channel();
        let serve = move || serve_layers(socket, files, &confined);
        thread::Builder::new()
            .name("layers".into())
            .spawn(serve)
            .context("cannot start a thread")?;
        // A guest that breaks this thread shall find no other that is free.
        is_confined.recv().context("the second thread ended")?;
    }
    let files = open(own_descriptors, roots)?;
    let slow = Slow::start()?;
    confine::syscall_filter()?.apply()?;
    serve(socket, files, Some(slow))
}

fn connected(socket: OwnedFd) -> Result<UnixStream> {
    let socket = UnixStream::from(socket);
    let fd = socket.as_raw_fd();
    socket
        .peer_addr()
        .with_context(|| format!("descriptor {fd} is not a connected unix socket"))?;
    Ok(socket)
}

/// The whole of the second thread, with which the process ends.
fn serve_layers(socket: UnixStream, files: Files, confined: &mpsc::Sender<()>) {
    let serve = || {
        // A working directory of its own: virtiofsd goes to another to look at attributes.
        unshare(CloneFlags::CLONE_FS).context("unshare")?;
        confine::syscall_filter()?.apply()?;
        let _ = confined.send(());
        serve(socket, files, None)
    };
    let status = match serve() {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{error:#}");
            1
        }
    };
    std::process::exit(status);
}
