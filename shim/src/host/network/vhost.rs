//! vhost-net: by which the host's kernel serves the queues of a guest's interface.

use super::error::NetworkError;
use std::fs::File;
use std::path::Path;

/// Where it is.
pub const DEVICE: &str = "/dev/vhost-net";

/// For one interface. Opening it loads the module, where the host has it.
///
/// # Errors
/// [`NetworkError::NoVhost`].
pub(super) fn open(at: &Path) -> Result<File, NetworkError> {
    let opened = File::options().read(true).write(true).open(at);
    opened.map_err(|source| NetworkError::NoVhost { path: at.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

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
