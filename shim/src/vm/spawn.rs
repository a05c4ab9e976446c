//! Starting the two helper processes of a sandbox, in the cgroup where they belong, and the processes that stand for its
//! containers.
//!
//! Not by std's `Command`: a process that moves into a cgroup waits there for a grace period of the kernel's, some
//! 20 ms, in which the machine could boot. One that is born in it (`CLONE_INTO_CGROUP`, clone(2)) does not.

use super::child::Child;
use crate::error::{Error, Result};
use crate::host::descriptor::place;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// The descriptor at which both helpers find their socket, and a second one behind it.
const SOCKET_FD: RawFd = protocol::control::CONTROL_FD;

/// Above those that a helper is born with, so that none is overwritten before it is in its place.
const OUT_OF_THE_WAY: RawFd = 16;

/// As libc's, which is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the forked process needs, all made before the fork: it can't allocate.
struct Birth {
    program: CString,
    arguments: Vec<CString>,
    parent: libc::pid_t,
    null: OwnedFd,
    stderr: OwnedFd,
    sockets: Vec<OwnedFd>,
    /// The namespace that it is born in, if not in its parent's.
    network: Option<OwnedFd>,
    /// Takes the error number of what failed; closed by exec.
    failure: OwnedFd,
}

/// What a new process has of its parent; the errors of its birth come by `failure`.
struct Born {
    child: Child,
    stderr: pipe::Receiver,
    failure: OwnedFd,
}

/// Starts `program` with `sockets` at descriptors 3 and on, its standard error piped, everything else closed; in the
/// cgroup whose directory is given, or in the caller's.
///
/// It is killed when the calling *thread* ends (until it changes its identity), so that thread must live
/// as long as the sandbox.
///
/// # Errors
/// The program can't be started; it is named. Or it can't be born in that cgroup.
pub fn helper(
    program: &Path,
    arguments: &[&OsStr],
    sockets: Vec<OwnedFd>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, pipe::Receiver)> {
    let start = || -> io::Result<_> {
        let Born { child, stderr, failure } = begin(program, arguments, (sockets, None), cgroup)?;
        let mut said = Vec::new();
        File::from(failure).read_to_end(&mut said)?;
        check(said)?;
        Ok((child, stderr))
    };
    let (child, stderr) = start().map_err(Error::path("start", program))?;
    give_up_protection(&child);
    Ok((child, stderr))
}

/// Most that a stand-in's complaint is listened to, bytes.
const MOST_WORDS: u64 = 1024;

/// How long one may take to be ready, on a host that has more to do than it can.
const STAND_IN_PATIENCE: Duration = Duration::from_secs(10);

/// Starts `program` in the cgroup of the caller and in this network namespace (or the caller's), without waiting for
/// it on the caller's thread; gives the process once it has closed its standard error, by which it says that it is
/// ready. The thread must live as long as the sandbox, as with [`helper`].
///
/// # Errors
/// It can't be started, has complained on its standard error, or is not ready in time: then it is killed.
pub async fn stand_in(
    program: &Path,
    arguments: &[&OsStr],
    network: Option<OwnedFd>,
) -> Result<Child> {
    stand_in_within(STAND_IN_PATIENCE, program, arguments, network).await
}

async fn stand_in_within(
    patience: Duration,
    program: &Path,
    arguments: &[&OsStr],
    network: Option<OwnedFd>,
) -> Result<Child> {
    let started = async {
        let Born { child, stderr, failure } =
            begin(program, arguments, (Vec::new(), network), None)?;
        let mut said = Vec::new();
        pipe::Receiver::from_owned_fd(failure)?.read_to_end(&mut said).await?;
        check(said)?;
        protect(&child);
        let mut complaint = String::new();
        stderr.take(MOST_WORDS).read_to_string(&mut complaint).await?;
        match complaint.trim() {
            "" => io::Result::Ok(child),
            complaint => Err(io::Error::other(complaint)),
        }
    };
    let started = tokio::time::timeout(patience, started).await;
    let started = started
        .unwrap_or_else(|_| Err(io::Error::other(format!("it was not ready within {patience:?}"))));
    started.map_err(Error::path("start", program))
}

/// What came by [`Born::failure`].
fn check(said: Vec<u8>) -> io::Result<()> {
    match said.try_into() {
        Ok(error) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error))),
        Err(_) => Ok(()),
    }
}

fn begin(
    program: &Path,
    arguments: &[&OsStr],
    (sockets, network): (Vec<OwnedFd>, Option<OwnedFd>),
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Born> {
    let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let (failure, failure_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let away = |fd: OwnedFd| fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY);
    let of_words = |words: &[&OsStr]| -> io::Result<Vec<CString>> {
        words.iter().map(|word| Ok(CString::new(word.as_bytes())?)).collect()
    };
    let birth = Birth {
        program: CString::new(program.as_os_str().as_bytes())?,
        arguments: of_words(&[&[program.as_os_str()], arguments].concat())?,
        parent: nix::unistd::getpid().as_raw(),
        null: away(File::options().read(true).write(true).open("/dev/null")?.into())?,
        stderr: away(stderr_theirs)?,
        sockets: sockets.into_iter().map(away).collect::<Result<_, _>>()?,
        network,
        failure: away(failure_theirs)?,
    };
    let (pid, fd) = fork(&birth, cgroup)?;
    let child = Child::new(pid, fd)?;
    Ok(Born { child, stderr: pipe::Receiver::from_owned_fd(stderr)?, failure })
}

/// Gives the new process's pid, and a descriptor of it.
fn fork(birth: &Birth, cgroup: Option<BorrowedFd<'_>>) -> io::Result<(Pid, OwnedFd)> {
    let mut arguments: Vec<_> = birth.arguments.iter().map(|word| word.as_ptr()).collect();
    arguments.push(ptr::null());
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let clone = libc::clone_args {
        flags: libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        // SAFETY: numbers all, for which 0 means that there is none.
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: without CLONE_VM it is a fork: the child has a copy of all memory. The kernel writes the descriptor to
    // `pidfd`, which lives on.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of::<libc::clone_args>()) };
    if pid == 0 {
        // SAFETY: this is the child, and all that `birth` and `arguments` point to is there.
        unsafe { become_program(birth, &arguments) }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
    // SAFETY: the kernel has just made it for this process; nothing else owns it.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Never returns: executes the program, or says why not.
///
/// # Safety
/// Only for the child of a fork, in which other threads may have held locks: it makes system calls only. `arguments`
/// is a list of pointers to living strings, which ends in a null.
unsafe fn become_program(birth: &Birth, arguments: &[*const libc::c_char]) -> ! {
    let failed = match prepare(birth) {
        Ok(()) => {
            let environment = [ptr::null::<libc::c_char>()];
            // SAFETY: strings and lists end in nulls, and live.
            unsafe {
                libc::execve(birth.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
            io::Error::last_os_error()
        }
        Err(error) => error,
    };
    let number = failed.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
    // SAFETY: writes from an array that lives; then nothing runs any more.
    unsafe {
        libc::write(birth.failure.as_raw_fd(), number.as_ptr().cast(), number.len());
        libc::_exit(127)
    }
}

/// In the child: what it is to have when its program begins.
fn prepare(birth: &Birth) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() != birth.parent {
        return Err(nix::Error::ESRCH.into());
    }
    // The user's Ctrl-C is for the container, which the command line passes it on to.
    nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))?;
    nix::unistd::chdir(c"/")?;
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    // SAFETY: no handler is set, and no memory touched.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    use_all_processors();
    if let Some(network) = &birth.network {
        nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    place(birth.null.as_raw_fd(), libc::STDIN_FILENO)?;
    place(birth.null.as_raw_fd(), libc::STDOUT_FILENO)?;
    place(birth.stderr.as_raw_fd(), libc::STDERR_FILENO)?;
    for (place_of, socket) in (SOCKET_FD..).zip(&birth.sockets) {
        place(socket.as_raw_fd(), place_of)?;
    }
    Ok(())
}

/// A caller that is kept to some processors (systemd's `CPUAffinity`, taskset) does not keep the machine to them: as with
/// runc that is for its cgroup to say. More than there are is no matter, nor that it is refused.
fn use_all_processors() {
    let all = [u8::MAX; 1024];
    // SAFETY: the kernel reads as many bytes from an array that lives.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) };
}

/// Whoever ends it ends a container, and gets no memory for that: it is the last that the kernel is to choose.
fn protect(child: &Child) {
    let file = format!("/proc/{}/oom_score_adj", child.pid());
    if let Err(error) = std::fs::write(&file, "-999") {
        tracing::warn!("{file}: {error}");
    }
}

/// containerd and its shims are protected from the system's shortage of memory; a guest must not be.
fn give_up_protection(child: &Child) {
    let file = format!("/proc/{}/oom_score_adj", child.pid());
    let protected = std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with('-'));
    if protected && let Err(error) = std::fs::write(&file, "0") {
        tracing::warn!("{file}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::script;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt as _;

    #[tokio::test]
    async fn a_helper_begins_with_what_it_is_given_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let text = "echo \"$1\" >&3; pwd >&3; readlink /proc/$$/fd/0 >&3; \
            grep -E 'SigBlk|SigIgn' /proc/self/status >&3; ps -o pgid= $$ >&3; echo $$ >&3; \
            env >&3; cat >&3; echo out; echo wrong >&2; kill -9 $$";
        let program = script(dir.path().join("program"), text);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let arguments: [&OsStr; 1] = ["a word".as_ref()];
        let (mut child, mut stderr) =
            helper(&program, &arguments, vec![theirs.into()], None).unwrap();
        let mut wrong = String::new();
        stderr.read_to_string(&mut wrong).await.unwrap();
        assert_eq!(wrong, "wrong\n", "stdout goes nowhere");
        let status = child.wait().await.unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(child.wait().await.unwrap(), status, "it is said again");
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[..3], ["a word", "/", "/dev/null"]);
        assert!(lines[3].starts_with("SigBlk") && lines[3].ends_with("0000000000000000"));
        let ignored = lines[4].strip_prefix("SigIgn:").unwrap().trim();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_eq!(ignored & 1 << (libc::SIGPIPE - 1), 0, "std ignores it");
        assert_eq!(lines[5].trim(), lines[6], "a process group of its own");
        let shells_own = |line: &&str| {
            !["PWD=", "_=", "SHLVL=", "OLDPWD="].iter().any(|own| line.starts_with(own))
        };
        assert_eq!(lines[7..].iter().filter(|line| shells_own(line)).count(), 0, "{said}");
    }

    #[tokio::test]
    async fn a_helper_is_not_kept_to_its_callers_processors() {
        use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
        let this = nix::unistd::Pid::from_raw(0);
        let before = sched_getaffinity(this).unwrap();
        let have =
            |set: &CpuSet| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect();
        let all: Vec<usize> = have(&before);
        let mut one = CpuSet::new();
        one.set(all[0]).unwrap();
        sched_setaffinity(this, &one).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let arguments = ["1000".as_ref()];
        let (mut child, _) =
            helper(Path::new("/bin/sleep"), &arguments, vec![theirs.into()], None).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.pid());
        let theirs: Vec<usize> = have(&sched_getaffinity(pid).unwrap());
        sched_setaffinity(this, &before).unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        child.wait().await.unwrap();
        ours.read_to_end(&mut Vec::new()).unwrap();
        assert!(all.iter().all(|cpu| theirs.contains(cpu)), "{theirs:?} of {all:?}");
    }

    #[tokio::test]
    async fn a_stand_in_that_is_not_ready_in_time_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let program = script(dir.path().join("program"), "echo $$ > \"$1\"; exec sleep 1000");
        let mut late = Duration::from_millis(500);
        // Until it was late enough for it to say who it is.
        let pid = loop {
            let error = stand_in_within(late, &program, &[pid.as_ref()], None).await.unwrap_err();
            assert!(error.chain().contains(&format!("not ready within {late:?}")), "{error:?}");
            match std::fs::read_to_string(&pid) {
                Ok(said) if said.ends_with('\n') => break said,
                _ => late *= 2,
            }
            assert!(late < Duration::from_secs(60), "it never says so");
        };
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[tokio::test]
    async fn what_can_not_be_executed_is_named() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let missing = Path::new("/nowhere/program");
        let error = helper(missing, &[], vec![theirs.into()], None).unwrap_err().chain();
        assert!(error.contains("/nowhere/program") && error.contains("No such file"), "{error}");
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let not_a_cgroup = File::open("/").unwrap();
        let cgroup = Some(std::os::fd::AsFd::as_fd(&not_a_cgroup));
        let error = helper(Path::new("/bin/true"), &[], vec![theirs.into()], cgroup).unwrap_err();
        assert!(error.chain().contains("/bin/true"), "{}", error.chain());
    }

    #[tokio::test]
    async fn one_that_nobody_wants_any_more_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path().join("program"), "exec sleep 1000");
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let (child, _stderr) = helper(&program, &[], vec![theirs.into()], None).unwrap();
        let pid = child.pid();
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
