//! A user's home directory, from the container's own /etc/passwd.

use crate::spec::place;
use nix::fcntl::OFlag;
use oci_spec::runtime::Spec;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most bytes of /etc/passwd that are read.
const MAX_PASSWD: u64 = 1024 * 1024;

/// The home directory of `uid` by the passwd file that the container has, in its root or mounted; `/` when it
/// does not say.
pub fn of_user(spec: &Spec, uid: u32) -> String {
    read_passwd(spec)
        .ok()
        .and_then(|passwd| find(&passwd, uid).map(ToOwned::to_owned))
        .unwrap_or_else(|| "/".to_owned())
}

/// The image owns this tree, so links in it must not lead out of it, and what looks like a file
/// may be a pipe with no writer.
fn read_passwd(spec: &Spec) -> io::Result<String> {
    let place = place::of(spec, Path::new("/etc/passwd")).ok_or(io::ErrorKind::NotFound)?;
    let file = place.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// passwd(5): name:password:uid:gid:comment:home:shell
fn find(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && home.starts_with('/')).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use serde_json::json;

    fn spec(root: &Path, mounts: &serde_json::Value) -> Spec {
        let spec = json!({"ociVersion": "1.2.0", "root": {"path": root}, "mounts": mounts});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_passwd_file_that_is_mounted_counts() {
        let root = std::env::temp_dir().join(format!("home-mount-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/image:").unwrap();
        std::fs::write(root.join("other"), "root:x:0:0::/mounted:").unwrap();
        let bind = json!([{"destination": "/etc/passwd", "source": root.join("other"), "options": ["bind"]}]);
        assert_eq!(of_user(&spec(&root, &json!([])), 0), "/image");
        assert_eq!(of_user(&spec(&root, &bind), 0), "/mounted");
        let tmpfs = json!([{"destination": "/etc", "type": "tmpfs", "source": "tmpfs"}]);
        assert_eq!(of_user(&spec(&root, &tmpfs), 0), "/");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_first_line_of_the_user_counts() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv:\nalso:x:33:33::/x:";
        assert_eq!(find(passwd, 0), Some("/root"));
        assert_eq!(find(passwd, 33), Some("/srv"));
        assert_eq!(find(passwd, 1), None);
        assert_eq!(find("a:x:1:1::relative:", 1), None);
    }

    #[test]
    fn a_link_out_of_the_root_and_a_pipe_are_not_followed() {
        let root = std::env::temp_dir().join(format!("home-test-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("etc/passwd")).unwrap();
        // Inside the root the link leads to itself.
        assert_eq!(of_user(&spec(&root, &json!([])), 0), "/");
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&root.join("etc/passwd"), Mode::from_bits_retain(0o600)).unwrap();
        assert_eq!(of_user(&spec(&root, &json!([])), 0), "/");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
