//! What this program does when a test runs it in a container.

pub mod listing;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The first argument, before the name of what there is to do.
pub const FLAG: &str = "--inside";

/// What `map` writes: as long as what it finds.
pub const MAPPED: &str = "mapped";

/// Does what the arguments after [`FLAG`] say.
pub fn main(arguments: &[OsString]) -> Result<()> {
    let [what, path, more @ ..] = arguments else { bail!("{FLAG} WHAT PATH…") };
    match what.to_str() {
        Some("map") => map(path),
        Some("list") => {
            [path].into_iter().chain(more).try_for_each(|path| listing::print(path.as_ref()))
        }
        Some("become") => [path].into_iter().chain(more).try_for_each(run_as_user),
        Some("rights") => rights(),
        Some("answer") => answer(path),
        Some("ask") => ask(path),
        other => bail!("{other:?}: no such thing to do"),
    }
}

/// Writes to a file through memory that is shared with it.
fn map(path: &OsString) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let (length, protection) = (MAPPED.len(), libc::PROT_READ | libc::PROT_WRITE);
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping of a file of this length, in nobody's way.
    let place =
        unsafe { libc::mmap(null, length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if place == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap");
    }
    // SAFETY: the mapping is this long, writable, and nobody else's in this process; then it ends.
    unsafe {
        place.cast::<u8>().copy_from_nonoverlapping(MAPPED.as_ptr(), length);
        libc::munmap(place, length);
    }
    Ok(())
}

/// Runs a copy of this program as a user without rights, who gains what the copy's file gives.
fn run_as_user(program: &OsString) -> Result<()> {
    for gains in [true, false] {
        let mut command = Command::new(program);
        command.args([FLAG, "rights", "/"]).uid(1000).gid(1000);
        if !gains {
            // SAFETY: a system call, which allocates nothing.
            unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_no_new_privs()?)) };
        }
        let output = command.output().with_context(|| format!("{}", program.display()))?;
        print!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    }
    Ok(())
}

/// What [`ask`] hears of [`answer`].
pub const ANSWER: &str = "answered";

/// Answers the first who asks on a socket that is made here.
fn answer(socket: &OsString) -> Result<()> {
    let listener = UnixListener::bind(socket).context("bind")?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o666))?;
    Ok(listener.accept()?.0.write_all(ANSWER.as_bytes())?)
}

/// Asks on a socket, and tells what is answered.
fn ask(socket: &OsString) -> Result<()> {
    let mut answer = String::new();
    UnixStream::connect(socket).context("connect")?.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

/// Tells the user, the group and the capabilities that count.
fn rights() -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("CapEff")).context("CapEff")?;
    println!("{uid}:{gid} {}", line.trim_start_matches("CapEff:\t").trim_start_matches('0'));
    Ok(())
}
