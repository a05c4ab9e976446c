//! A jail from the inside: each case runs in a process of its own, which enters a jail and reports what
//! it sees, while the test looks from outside.
//!
//! The cases need root.

use jail::{Capabilities, Identity, Jail, JailError, Namespaces, Root, SyscallFilter};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const CHILD: &str = "JAIL_TEST_CHILD";
const DIRECTORY: &str = "JAIL_TEST_DIRECTORY";
const UID: u32 = 54_321;

type TestResult = Result<(), Box<dyn Error>>;
type Test = (&'static str, fn() -> TestResult);

fn main() -> TestResult {
    if let Ok(role) = std::env::var(CHILD) {
        return child(&role);
    }
    if !rustix::process::geteuid().is_root() {
        return Err("these tests make mounts and namespaces: run them as root".into());
    }
    let tests: [Test; 11] = [
        ("a_jail_without_rights_has_none", a_jail_without_rights_has_none),
        ("kept_capabilities_survive_a_new_identity", kept_capabilities_survive_a_new_identity),
        ("the_empty_root_is_empty_and_read_only", the_empty_root_is_empty_and_read_only),
        ("a_directory_is_all_there_is", a_directory_is_all_there_is),
        ("a_mount_made_later_arrives_and_none_goes_back", a_mount_made_later_arrives),
        ("mounts_made_while_it_is_entered_all_arrive", mounts_made_meanwhile_arrive),
        ("a_forbidden_system_call_kills", a_forbidden_system_call_kills),
        ("memory_is_not_executable", memory_is_not_executable),
        ("a_cgroup_without_devices_has_none", a_cgroup_without_devices_has_none),
        ("a_process_with_threads_is_refused", a_process_with_threads_is_refused),
        ("other_descriptors_are_closed", other_descriptors_are_closed),
    ];
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
        print!("test {name} ... ");
        test().inspect_err(|_| println!("FAILED"))?;
        println!("ok");
    }
    Ok(())
}

// ---- the child's side -------------------------------------------------------------------------

fn child(role: &str) -> TestResult {
    match role {
        "empty" => {
            no_rights(Root::Empty).enter()?;
            report("listing", &listing("/"));
            report("outside", &reachable("/etc/passwd"));
            report("write", &outcome(File::create("/x")));
        }
        "keep" => {
            let mut jail = no_rights(Root::Empty);
            jail.capabilities = Capabilities::CHOWN | Capabilities::DAC_OVERRIDE;
            jail.enter()?;
        }
        "directory" => {
            let link = format!("{}/../..", directory());
            no_rights(Root::Directory { path: directory().into(), receive_mounts: false })
                .enter()?;
            report("listing", &listing("/"));
            report("outside", &reachable("/etc/passwd"));
            report("parent", &listing("/../../.."));
            report("old path", &reachable(&link));
            report("symlink", &outcome(fs::read_to_string("/to-passwd")));
            report("device", &outcome(File::open("/zero")));
            report("program", &outcome(std::process::Command::new("/program").spawn()));
        }
        "mounts" => {
            let mut jail =
                no_rights(Root::Directory { path: directory().into(), receive_mounts: true });
            jail.identity = None;
            jail.capabilities = Capabilities::SYS_ADMIN;
            jail.enter()?;
            rustix::mount::mount(
                "tmpfs",
                "/own",
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                None,
            )?;
            report("before", &listing("/late"));
            wait();
            report("after", &listing("/late"));
        }
        "meanwhile" => {
            let mut jail =
                no_rights(Root::Directory { path: directory().into(), receive_mounts: true });
            jail.identity = None;
            jail.enter()?;
            report("entered", "");
            wait();
            let missed = (0..MEANWHILE).filter(|i| listing(&format!("/{i}")) != "arrived").count();
            report("missed", &missed.to_string());
        }
        "cgroup" => {
            let cgroup = PathBuf::from(directory());
            jail::forbid_devices(File::open(&cgroup)?)?;
            report("outside", &outcome(File::open("/dev/zero")));
            fs::write(cgroup.join("cgroup.procs"), "0")?;
            report("inside", &outcome(File::open("/dev/zero")));
            let node = std::env::temp_dir().join(format!("jail-test-node-{}", std::process::id()));
            report("made", &outcome(zero(&node)));
            report("opened", &outcome(File::open(&node)));
            fs::remove_file(node)?;
        }
        "exec" => {
            let flags = (libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC);
            let allowed = [libc::SYS_write, libc::SYS_exit_group, libc::SYS_munmap];
            let filter = SyscallFilter::new().allow(&allowed);
            filter.allow_without(libc::SYS_mmap, 2, libc::PROT_EXEC as u32).compile()?.apply()?;
            report("readable", &outcome(map(flags.0)));
            report("alive", "");
            report("executable", &outcome(map(flags.1)));
        }
        "seccomp" => {
            let allowed = [libc::SYS_write, libc::SYS_exit_group];
            SyscallFilter::new().allow(&allowed).compile()?.apply()?;
            report("alive", "");
            let _ = rustix::process::getppid();
            report("survived", "");
        }
        "threads" => {
            let (_keep, wait) = std::sync::mpsc::channel::<()>();
            std::thread::spawn(move || wait.recv());
            match no_rights(Root::Empty).enter() {
                Err(JailError::Threads { threads: 2 }) => report("refused", ""),
                other => return Err(format!("{other:?}").into()),
            }
        }
        "descriptors" => {
            let kept = File::open("/dev/null")?;
            let closed = std::os::fd::IntoRawFd::into_raw_fd(File::open("/dev/null")?);
            jail::close_other_fds(&[kept.as_raw_fd(), -1, 1 << 20])?;
            report("kept", &outcome(kept.metadata()));
            report("closed", &reachable(&format!("/proc/self/fd/{closed}")));
        }
        other => return Err(format!("no role {other}").into()),
    }
    report("ready", "");
    wait();
    Ok(())
}

fn no_rights(root: Root) -> Jail {
    Jail {
        identity: Some(Identity { uid: UID, gid: UID }),
        capabilities: Capabilities::empty(),
        root,
        namespaces: Namespaces::ALL,
        open_files: Some(64),
    }
}

/// Makes a node of the device that gives zeroes.
fn zero(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5))?)
}

/// Maps a page of memory.
fn map(protection: i32) -> std::io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, which nobody touches.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn report(key: &str, value: &str) {
    println!("{key}={value}");
}

fn outcome<T>(result: std::io::Result<T>) -> String {
    result.map_or_else(|e| format!("{:?}", e.kind()), |_| "yes".into())
}

fn reachable(path: &str) -> String {
    outcome(fs::symlink_metadata(path))
}

fn listing(path: &str) -> String {
    let Ok(entries) = fs::read_dir(path) else { return "unreadable".into() };
    let mut names: Vec<_> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join(" ")
}

fn directory() -> String {
    std::env::var(DIRECTORY).unwrap_or_default()
}

/// Until the test has looked and closes standard input, or writes a byte.
fn wait() {
    let _ = std::io::stdin().read(&mut [0]);
}

// ---- the test's side --------------------------------------------------------------------------

struct Inside {
    process: Child,
    output: BufReader<ChildStdout>,
    reports: BTreeMap<String, String>,
}

impl Inside {
    /// Starts a child and reads its reports up to and with the one called `until`.
    fn start(role: &str, directory: &Path, until: &str) -> Result<Self, Box<dyn Error>> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(CHILD, role)
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(process.stdout.take().ok_or("no output")?);
        let mut inside = Self { process, output, reports: BTreeMap::new() };
        inside.read_until(until)?;
        Ok(inside)
    }

    fn read_until(&mut self, until: &str) -> TestResult {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(format!("ended early: {:?}", self.process.wait()?).into());
            }
            let (key, value) = line.trim_end().split_once('=').ok_or("not a report")?;
            self.reports.insert(key.into(), value.into());
            if key == until {
                return Ok(());
            }
        }
    }

    fn expect(&self, key: &str, value: &str) -> TestResult {
        check(key, self.reports.get(key).map(String::as_str), value)
    }

    /// A field of /proc/PID/status.
    fn expect_status(&self, field: &str, value: &str) -> TestResult {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let found = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        let words = found.map(|f| f.split_whitespace().collect::<Vec<_>>().join(" "));
        check(field, words.as_deref(), value)
    }

    fn expect_capabilities(&self, kept: u64) -> TestResult {
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            self.expect_status(set, &format!("{kept:016x}"))?;
        }
        for set in ["CapInh", "CapAmb"] {
            self.expect_status(set, "0000000000000000")?;
        }
        self.expect_status("NoNewPrivs", "1")
    }

    fn namespace(&self, kind: &str) -> std::io::Result<PathBuf> {
        fs::read_link(format!("/proc/{}/ns/{kind}", self.process.id()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn check(what: &str, found: Option<&str>, expected: &str) -> TestResult {
    if found == Some(expected) {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, expected {expected:?}").into())
}

fn a_jail_without_rights_has_none() -> TestResult {
    let inside = Inside::start("empty", Path::new(""), "ready")?;
    inside.expect_capabilities(0)?;
    let id = UID.to_string();
    inside.expect_status("Uid", &[id.as_str(); 4].join(" "))?;
    inside.expect_status("Gid", &[id.as_str(); 4].join(" "))?;
    inside.expect_status("Groups", "")?;
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        if inside.namespace(kind)? == fs::read_link(format!("/proc/self/ns/{kind}"))? {
            return Err(format!("the {kind} namespace is the host's").into());
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", inside.process.id()))?;
    for (name, value) in [("Max core file size", "0"), ("Max open files", "64")] {
        let line = limits.lines().find_map(|l| l.strip_prefix(name)).ok_or(name)?;
        check(name, line.split_whitespace().next(), value)?;
    }
    Ok(())
}

fn kept_capabilities_survive_a_new_identity() -> TestResult {
    let kept = Capabilities::CHOWN | Capabilities::DAC_OVERRIDE;
    Inside::start("keep", Path::new(""), "ready")?.expect_capabilities(kept.bits())
}

fn the_empty_root_is_empty_and_read_only() -> TestResult {
    let inside = Inside::start("empty", Path::new(""), "ready")?;
    inside.expect("listing", "")?;
    inside.expect("outside", "NotFound")?;
    inside.expect("write", "ReadOnlyFilesystem")?;
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", inside.process.id()))?;
    check("number of mounts", Some(&mounts.lines().count().to_string()), "1")
}

fn a_directory_is_all_there_is() -> TestResult {
    let scratch = Scratch::new("directory")?;
    fs::write(scratch.0.join("file"), "")?;
    std::os::unix::fs::symlink("/etc/passwd", scratch.0.join("to-passwd"))?;
    zero(&scratch.0.join("zero"))?;
    fs::copy("/bin/true", scratch.0.join("program"))?;
    let inside = Inside::start("directory", &scratch.0, "ready")?;
    inside.expect("listing", "file program to-passwd zero")?;
    inside.expect("parent", "file program to-passwd zero")?;
    inside.expect("device", "PermissionDenied")?;
    inside.expect("program", "PermissionDenied")?;
    inside.expect("outside", "NotFound")?;
    inside.expect("old path", "NotFound")?;
    inside.expect("symlink", "NotFound")
}

fn a_mount_made_later_arrives() -> TestResult {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let scratch = Scratch::new("mounts")?;
    rustix::mount::mount_bind(&scratch.0, &scratch.0)?;
    rustix::mount::mount_change(&scratch.0, MountPropagationFlags::SHARED)?;
    let late = scratch.0.join("late");
    fs::create_dir(&late)?;
    fs::create_dir(scratch.0.join("own"))?;
    let result = (|| {
        let mut inside = Inside::start("mounts", &scratch.0, "before")?;
        inside.expect("before", "")?;
        rustix::mount::mount("tmpfs", &late, "tmpfs", MountFlags::empty(), None)?;
        fs::create_dir(late.join("arrived"))?;
        std::io::Write::write_all(inside.process.stdin.as_mut().ok_or("no stdin")?, b".")?;
        inside.read_until("ready")?;
        inside.expect("after", "arrived")?;
        let own = scratch.0.join("own").display().to_string();
        let escaped = fs::read_to_string("/proc/self/mounts")?.contains(&own);
        check("own mount on the host", Some(&escaped.to_string()), "false")
    })();
    let _ = rustix::mount::unmount(&late, UnmountFlags::DETACH);
    rustix::mount::unmount(&scratch.0, UnmountFlags::DETACH)?;
    result
}

/// How many mounts are made while a jail is entered.
const MEANWHILE: usize = 400;

fn mounts_made_meanwhile_arrive() -> TestResult {
    // What is looked for is a matter of microseconds.
    (0..10).try_for_each(|_| one_round_of_mounts_made_meanwhile())
}

fn one_round_of_mounts_made_meanwhile() -> TestResult {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let scratch = Scratch::new("meanwhile")?;
    rustix::mount::mount_bind(&scratch.0, &scratch.0)?;
    rustix::mount::mount_change(&scratch.0, MountPropagationFlags::SHARED)?;
    let below = |i: usize| scratch.0.join(i.to_string());
    (0..MEANWHILE).try_for_each(|i| fs::create_dir(below(i)))?;
    let result = (|| {
        let directory = scratch.0.clone();
        let start = || Inside::start("meanwhile", &directory, "entered").map_err(|e| e.to_string());
        let mut inside = std::thread::scope(|scope| -> Result<_, Box<dyn Error>> {
            let inside = scope.spawn(start);
            for i in 0..MEANWHILE {
                rustix::mount::mount("tmpfs", below(i), "tmpfs", MountFlags::empty(), None)?;
                fs::create_dir(below(i).join("arrived"))?;
            }
            Ok(inside.join().map_err(|_| "the child's thread panicked")??)
        })?;
        std::io::Write::write_all(inside.process.stdin.as_mut().ok_or("no stdin")?, b".")?;
        inside.read_until("ready")?;
        inside.expect("missed", "0")
    })();
    for i in 0..MEANWHILE {
        let _ = rustix::mount::unmount(below(i), UnmountFlags::DETACH);
    }
    rustix::mount::unmount(&scratch.0, UnmountFlags::DETACH)?;
    result
}

fn a_forbidden_system_call_kills() -> TestResult {
    let mut inside = Inside::start("seccomp", Path::new(""), "alive")?;
    inside.process.stdin.take();
    let status = inside.process.wait()?;
    check("signal", status.signal().map(|s| s.to_string()).as_deref(), &libc::SIGSYS.to_string())
}

fn memory_is_not_executable() -> TestResult {
    let mut inside = Inside::start("exec", Path::new(""), "alive")?;
    inside.expect("readable", "yes")?;
    let status = inside.process.wait()?;
    check("signal", status.signal().map(|s| s.to_string()).as_deref(), &libc::SIGSYS.to_string())
}

fn a_cgroup_without_devices_has_none() -> TestResult {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let unified = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let unified = unified.into_iter().find(|fields| fields[2] == "cgroup2");
    let unified = unified.ok_or("no cgroups of version 2 are mounted")?[1].to_owned();
    let cgroup = Path::new(&unified).join(format!("jail-test-{}", std::process::id()));
    fs::create_dir(&cgroup)?;
    let result = (|| {
        let inside = Inside::start("cgroup", &cgroup, "ready")?;
        inside.expect("outside", "yes")?;
        inside.expect("inside", "PermissionDenied")?;
        inside.expect("made", "yes")?;
        inside.expect("opened", "PermissionDenied")
    })();
    fs::remove_dir(&cgroup)?;
    result
}

fn a_process_with_threads_is_refused() -> TestResult {
    Inside::start("threads", Path::new(""), "ready").map(drop)
}

fn other_descriptors_are_closed() -> TestResult {
    let inside = Inside::start("descriptors", Path::new(""), "ready")?;
    inside.expect("kept", "yes")?;
    inside.expect("closed", "NotFound")
}

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("jail-test-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
