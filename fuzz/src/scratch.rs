//! Files for what reads files: in memory, where there is such a directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// A new directory that is removed when it is dropped.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

/// The place of a file that every input writes anew, in the process's own directory.
pub fn file(name: &str) -> PathBuf {
    extern "C" fn remove() {
        let _ = DIRECTORY.get().map(std::fs::remove_dir_all);
    }
    let directory = DIRECTORY.get_or_init(|| {
        // SAFETY: registers a function that takes nothing. Statics are not dropped at the end.
        unsafe { libc::atexit(remove) };
        directory().keep()
    });
    directory.join(name)
}

/// Bytes of [`disk`].
pub const DISK: u64 = 64 * 512;

/// A new disk of zeroes.
pub fn disk() -> File {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true).open(file("disk"));
    let file = file.expect("a file");
    file.set_len(DISK).expect("a size");
    file
}

/// As in the product, a write to a closed pipe is an error and no signal; and files stay small.
pub fn limit_process() {
    let limit = libc::rlimit { rlim_cur: 16 << 20, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain system calls on numbers and a structure that lives for the call.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
    }
}
