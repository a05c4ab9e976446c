//! A user's home directory, from the container's own /etc/passwd.

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

/// Most bytes of /etc/passwd that are read.
const MAX_PASSWD: u64 = 1024 * 1024;

/// The home directory of `uid` by the passwd file below `rootfs`; `/` when it does not say.
pub fn of_user(rootfs: &Path, uid: u32) -> String {
    read_passwd(rootfs)
        .ok()
        .and_then(|passwd| find(&passwd, uid).map(ToOwned::to_owned))
        .unwrap_or_else(|| "/".to_owned())
}

/// The image owns this tree, so links in it must not lead out of it, and what looks like a file
/// may be a pipe with no writer.
fn read_passwd(rootfs: &Path) -> io::Result<String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::openat(AT_FDCWD, rootfs, flags, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(root.as_fd(), "etc/passwd", how)?);
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
        assert_eq!(of_user(&root, 0), "/");
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&root.join("etc/passwd"), Mode::from_bits_retain(0o600)).unwrap();
        assert_eq!(of_user(&root, 0), "/");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
