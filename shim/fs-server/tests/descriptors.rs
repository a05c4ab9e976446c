//! What the file server keeps of what it inherited.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn what_a_shim_left_open_by_mistake_is_closed() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let directory = std::env::temp_dir();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-like-fs"));
    command.arg("--shared-dir").arg(&directory);
    let socket = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    // SAFETY: plain system calls on descriptors that are open; the copies are open across exec.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(0, 77) == 77 && libc::dup2(socket, 3) == 3 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let mut server = command.spawn().unwrap();
    let left_open = format!("/proc/{}/fd/77", server.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::symlink_metadata(&left_open).is_ok() {
        assert!(Instant::now() < deadline, "it stays open");
        std::thread::yield_now();
    }
    assert!(server.try_wait().unwrap().is_none(), "it ended instead of closing it");
    drop((ours, theirs));
    server.wait().unwrap();
}
