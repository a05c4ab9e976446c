//! Whether this host can give guests a network: all that it takes is tried, in a namespace that is gone at once.

use super::error::NetworkError;
use super::namespace::Namespace;
use super::{client, forward, redirect, tap, vhost};
use nix::sched::{CloneFlags, unshare};
use std::io;

/// Makes a tap, and redirects what arrives at it. Blocks.
///
/// # Errors
/// What the kernel lacks, or this process may not.
pub fn taps() -> Result<(), NetworkError> {
    let probed = "of a trial";
    namespace()?.within(|| {
        let mut client = client()?;
        let (_tap, index) = tap::make(&mut client, 1500)
            .map_err(NetworkError::interface(probed, "make a tap beside it"))?;
        redirect::open(&mut client, index)
            .and_then(|()| redirect::redirect(&mut client, index, index))
            .map_err(NetworkError::interface(probed, "redirect what arrives at it"))
    })?
}

/// Hears connections to localhost. Blocks.
///
/// # Errors
/// As [`taps`].
pub fn localhost() -> Result<(), NetworkError> {
    forward::listen(&namespace()?).map(drop)
}

/// Has the host's kernel serve interfaces. Blocks.
///
/// # Errors
/// [`NetworkError::NoVhost`].
pub fn vhost_net() -> Result<(), NetworkError> {
    vhost::open(vhost::DEVICE.as_ref()).map(drop)
}

fn namespace() -> Result<Namespace, NetworkError> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetworkError::Enter(e.into()))?;
        Namespace::open("/proc/thread-self/ns/net".as_ref())
    });
    made.join().unwrap_or_else(|_| Err(NetworkError::Enter(io::Error::other("a panic"))))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_tests_of_the_network_need_is_there() {
        super::taps().unwrap();
        super::localhost().unwrap();
    }
}
