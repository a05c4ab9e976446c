//! vhost-net: by which the host's kernel serves the queues of a guest's interface.

use super::error::NetworkError;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Where it is.
pub const DEVICE: &str = "/dev/vhost-net";

/// `VHOST_GET_FEATURES`, `_IOR(0xAF, 0x00, __u64)`.
const GET_FEATURES: libc::c_ulong = 0x8008_af00;

/// What guests are offered that the host's kernel has to do: `VIRTIO_NET_F_MRG_RXBUF`, `VIRTIO_F_INDIRECT_DESC`,
/// `VIRTIO_F_EVENT_IDX` and `VIRTIO_F_VERSION_1`.
const NEEDED: u64 = 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32;

/// For one interface. Opening it loads the module, where the host has it.
///
/// # Errors
/// [`NetworkError::NoVhost`], or it can't do what it has to.
pub(super) fn open(at: &Path) -> Result<File, NetworkError> {
    let no_vhost = |source| NetworkError::NoVhost { path: at.to_owned(), source };
    let file = File::options().read(true).write(true).open(at).map_err(no_vhost)?;
    features(&file).and_then(check).map_err(no_vhost)?;
    Ok(file)
}

fn features(file: &File) -> io::Result<u64> {
    let mut features = 0u64;
    // SAFETY: the request writes 8 bytes to a value that lives for the call.
    let done =
        unsafe { libc::ioctl(file.as_raw_fd(), GET_FEATURES as libc::Ioctl, &raw mut features) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(features) }
}

fn check(features: u64) -> io::Result<()> {
    match NEEDED & !features {
        0 => Ok(()),
        lacks => Err(io::Error::other(format!("it lacks the features {lacks:#x} of virtio"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_can_not_do_what_guests_are_offered_is_refused() {
        check(u64::MAX).unwrap();
        let error = check(!(1 << 29)).unwrap_err().to_string();
        assert!(error.contains("0x20000000"), "{error}");
        let error = open(Path::new("/dev/null")).unwrap_err();
        assert!(crate::error::Error::from(error).chain().contains("/dev/null"));
    }

    #[test]
    fn a_host_without_it_is_told_what_to_do() {
        let error = open(Path::new("/nonexistent/vhost-net")).unwrap_err();
        let error = crate::error::Error::from(error).chain();
        for words in
            ["/nonexistent/vhost-net", "No such file", "modprobe vhost_net", "network.vhost_net"]
        {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
