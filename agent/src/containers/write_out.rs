//! What a container has written goes to the host's files when it closes them, or when the kernel sees fit. Who pauses it
//! means to look at them: so what its stopped processes have open is written then, by closing each file once more.
//!
//! Nothing here asks a file system of the container's own, whose server may be one of the processes that stand still.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long that may take: with what stopping the processes may take, less than the host waits for a pause. What is left
/// then the kernel writes by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// What writes out for one container, one at a time.
#[derive(Debug, Default)]
pub struct WriteOut(Arc<AtomicBool>);

impl WriteOut {
    /// Writes what the files of the host hold that these processes have open, or mapped, to be written to. Blocks, but not
    /// as long as the host's disk may: one close that doesn't return is left behind.
    ///
    /// What can't be looked at is left to the kernel: a process that ends has closed what it had.
    ///
    /// # Errors
    /// It takes too long, or one that took too long is still at it.
    pub fn of(&self, processes: Vec<i32>) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        self.within(PATIENCE, move || close_all(&processes, end))
    }

    /// What `work` gives, if it does in time; else it goes on by itself.
    fn within(
        &self,
        patience: Duration,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        if self.0.swap(true, Ordering::Acquire) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (done, result) = mpsc::channel();
        let at_it = AtIt(Arc::clone(&self.0));
        thread::Builder::new().name("write-out".to_owned()).spawn(move || {
            let outcome = work();
            drop(at_it);
            // Nobody may wait any more.
            let _ = done.send(outcome);
        })?;
        result.recv_timeout(patience).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// That one is at it, until this is dropped.
struct AtIt(Arc<AtomicBool>);

impl Drop for AtIt {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Closes each file of theirs once more, as many as can be begun until `end`.
fn close_all(processes: &[i32], end: Instant) -> io::Result<()> {
    let mut written = HashSet::new();
    for pid in processes {
        let process = Path::new("/proc").join(pid.to_string());
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        let mounts = Mounts::of(&mounts);
        let files = open_files(&process, &mounts).chain(mapped_files(&process, &mounts));
        for file in files {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // A file is the same whoever has it open.
            if written.insert(file.file) {
                close_once_more(*pid, &process, &file.how);
            }
        }
    }
    Ok(())
}

/// A file of the host's, and how to come to it.
struct Found {
    /// Its file system, and its number there.
    file: (String, u64),
    how: How,
}

enum How {
    /// The process has it open by this number.
    Open(i32),
    /// It is mapped so.
    Mapped(PathBuf),
}

/// Closing is what writes: of a descriptor that is the process's own nobody who watches the file hears.
fn close_once_more(pid: i32, process: &Path, how: &How) {
    let closed = match how {
        How::Open(number) => duplicate(pid, *number).map(drop).map_err(io::Error::from),
        How::Mapped(name) => OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(process.join("map_files").join(name))
            .map(drop),
    };
    if let Err(error) = closed {
        tracing::debug!(pid, %error, "a file of a process that is paused");
    }
}

fn duplicate(pid: i32, number: i32) -> Result<OwnedFd, Errno> {
    let process = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    pidfd_getfd(process, number, PidfdGetfdFlags::empty())
}

/// Where the host's files are mounted.
struct Mounts(Vec<(String, String)>);

impl Mounts {
    /// By what a process's mountinfo (proc_pid_mountinfo(5)) says: each mount's id, and its file system's device.
    fn of(mountinfo: &str) -> Self {
        let mounts = mountinfo.lines().filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut fields = mount.split(' ');
            let (id, device) = (fields.next()?, fields.nth(1)?);
            file_system.starts_with("virtiofs ").then(|| (id.to_owned(), device.to_owned()))
        });
        Self(mounts.collect())
    }

    fn device_of(&self, id: &str) -> Option<&str> {
        self.0.iter().find(|(mount, _)| mount == id).map(|(_, device)| device.as_str())
    }

    fn has(&self, device: &str) -> bool {
        self.0.iter().any(|(_, of)| of == device)
    }
}

fn open_files<'a>(process: &Path, mounts: &'a Mounts) -> impl Iterator<Item = Found> + use<'a> {
    let numbers = fs::read_dir(process.join("fdinfo")).into_iter().flatten();
    numbers.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let file = open_to_write(&fs::read_to_string(entry.path()).ok()?, mounts)?;
        Some(Found { file, how: How::Open(number) })
    })
}

/// The file of the host's that a descriptor, by its fdinfo (proc_pid_fdinfo(5)), may write to.
fn open_to_write(fdinfo: &str, mounts: &Mounts) -> Option<(String, u64)> {
    let of = |name: &str| fdinfo.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    let flags = i32::from_str_radix(of("flags:")?, 8).ok()?;
    let may_write = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
    let device = mounts.device_of(of("mnt_id:")?).filter(|_| may_write)?;
    Some((device.to_owned(), of("ino:")?.parse().ok()?))
}

fn mapped_files<'a>(process: &Path, mounts: &'a Mounts) -> impl Iterator<Item = Found> + use<'a> {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let found: Vec<_> = maps.lines().filter_map(|line| mapped_to_write(line, mounts)).collect();
    found.into_iter()
}

/// The file of the host's that a line of maps (proc_pid_maps(5)) is about, if what is written there is written to it.
fn mapped_to_write(line: &str, mounts: &Mounts) -> Option<Found> {
    let mut fields = line.split_whitespace();
    let (addresses, rights, device) = (fields.next()?, fields.next()?, fields.nth(1)?);
    let (major, minor) = device.split_once(':')?;
    let [major, minor] = [major, minor].map(|number| u32::from_str_radix(number, 16).ok());
    let device = format!("{}:{}", major?, minor?);
    let is_shared = rights.contains('w') && rights.ends_with('s');
    let number = fields.next()?.parse().ok()?;
    let how = How::Mapped(addresses.into());
    (is_shared && mounts.has(&device)).then_some(Found { file: (device, number), how })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    const MOUNTS: &str = "21 1 0:20 / /proc rw - proc proc rw\n\
        30 21 0:33 /c1/rootfs / rw,relatime - virtiofs shared rw\n\
        31 30 0:44 / /mnt rw master:3 - fuse.sshfs other rw\n";

    #[test]
    fn files_of_the_host_that_are_open_to_be_written_to_are_found() {
        let mounts = Mounts::of(MOUNTS);
        let of = |flags: &str, mount: &str| {
            let info = format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t{mount}\nino:\t77\n");
            open_to_write(&info, &mounts)
        };
        let file = Some(("0:33".to_owned(), 77));
        assert_eq!((of("0100001", "30"), of("02100002", "30")), (file.clone(), file));
        assert_eq!((of("0100000", "30"), of("0100001", "31")), (None, None));
        assert_eq!((of("010000001", "30"), of("0100001", "21")), (None, None), "O_PATH, and /proc");
        // As this kernel writes it.
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let own = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let all = all.lines().map(|line| line.split_once(" - ").unwrap().0);
        let all: String = all.map(|mount| format!("{mount} - virtiofs a b\n")).collect();
        assert!(open_to_write(&own, &Mounts::of(&all)).is_some(), "{own}");
        let own = duplicate(std::process::id().try_into().unwrap(), file.as_raw_fd()).unwrap();
        assert_ne!(own.as_raw_fd(), file.as_raw_fd());
    }

    #[test]
    fn files_of_the_host_that_are_mapped_to_be_written_to_are_found() {
        let mounts = Mounts::of(MOUNTS);
        let of = |rights: &str, device: &str| {
            let line = format!("7f00-8f00 {rights} 00000000 {device} 77    /a file (deleted)");
            mapped_to_write(&line, &mounts).map(|found| found.file)
        };
        assert_eq!(of("rw-s", "00:21"), Some(("0:33".to_owned(), 77)));
        assert_eq!(
            (of("rw-p", "00:21"), of("r--s", "00:21"), of("rw-s", "00:2c")),
            Default::default()
        );
        assert!(mapped_to_write("7ffc-7ffd r-xp 00000000 00:00 0 [vdso]", &mounts).is_none());
        WriteOut::default().of(vec![std::process::id() as i32, i32::MAX]).unwrap();
    }

    #[test]
    fn one_that_hangs_is_left_behind_and_met_by_no_other() {
        let (all, (let_go, hangs)) = (WriteOut::default(), mpsc::channel::<()>());
        let (moment, long) = (Duration::from_millis(20), Duration::from_secs(20));
        let kind = |outcome: io::Result<()>| outcome.map_err(|error| error.kind());
        let hung = all.within(moment, move || {
            let _ = hangs.recv();
            Ok(())
        });
        assert_eq!(kind(hung), Err(io::ErrorKind::TimedOut));
        assert_eq!(kind(all.within(long, || Ok(()))), Err(io::ErrorKind::ResourceBusy));
        drop(let_go);
        let end = Instant::now() + long;
        while let Err(error) = all.within(long, || Ok(())) {
            assert!(error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end, "{error}");
            thread::sleep(moment);
        }
    }
}
