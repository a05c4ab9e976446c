//! What the VMM and the file server may do, read from /proc while they run.

use crate::command::{self, DEADLINE};
use crate::context::Context;
use crate::{leaks, ptrace};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::os::unix::process::CommandExt;

crate::cases!(
    crate::Scope::Once;
    the_vmm_holds_nothing,
    one_vmm_cannot_touch_anothers,
    the_file_server_holds_only_file_capabilities,
    a_read_only_root_is_so_for_the_guests_kernel_too,
    a_forbidden_system_call_kills_the_vmm;
    crate::Scope::AllOnce;
    a_forbidden_system_call_kills_the_file_server,
);

/// Capabilities that serving files takes, as their numbers (capability.h).
const FILE_CAPABILITIES: [u32; 9] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    2,  // DAC_READ_SEARCH
    3,  // FOWNER
    4,  // FSETID
    6,  // SETGID
    7,  // SETUID
    27, // MKNOD
    31, // SETFCAP
];

/// The one process of ours whose program has this name.
pub fn pid_of(name: &str) -> Result<u32> {
    let all = leaks::our_processes()?;
    let mut found = all.iter().filter(|(_, line)| {
        line.split(' ').next().is_some_and(|program| program.rsplit('/').next() == Some(name))
    });
    let (pid, _) = found.next().with_context(|| format!("no {name} among {all:?}"))?;
    match found.next() {
        Some(_) => bail!("more than one {name}: {all:?}"),
        None => Ok(*pid),
    }
}

/// Each thread's /proc status.
fn threads(pid: u32) -> Result<Vec<String>> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|entry| Ok(fs::read_to_string(entry?.path().join("status"))?))
        .collect()
}

/// A field of a /proc status.
pub fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("no {name} in status"))
}

fn same_namespace(a: u32, b: u32, kind: &str) -> Result<bool> {
    let link = |pid| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    Ok(link(a)? == link(b)?)
}

fn check_threads(pid: u32, allowed: u64) -> Result<()> {
    for status in threads(pid)? {
        let name = field(&status, "Name")?.to_owned();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let held = u64::from_str_radix(field(&status, set)?, 16)?;
            if held & !allowed != 0 {
                bail!("thread {name} has {set} {held:#x}, allowed are {allowed:#x}");
            }
        }
        for (key, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            if field(&status, key)? != value {
                bail!("thread {name} has {key} {}", field(&status, key)?);
            }
        }
    }
    Ok(())
}

fn check_namespaces(pid: u32) -> Result<()> {
    for kind in ["mnt", "net", "ipc", "uts"] {
        if same_namespace(pid, 1, kind)? {
            bail!("process {pid} is in the host's {kind} namespace");
        }
    }
    Ok(())
}

fn the_vmm_holds_nothing(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let pid = pid_of("kata-like-vmm")?;
    check_threads(pid, 0)?;
    check_namespaces(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    if field(&status, "Uid")?.split_whitespace().any(|uid| uid == "0") {
        bail!("the VMM's uid is {}", field(&status, "Uid")?);
    }
    if !field(&status, "Groups")?.is_empty() {
        bail!("the VMM is in groups {}", field(&status, "Groups")?);
    }
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root/"))?.flatten().collect();
    if !root.is_empty() {
        bail!("the VMM's root holds {root:?}");
    }
    container.remove()
}

/// Each is a user of its own, so what is broken into in one sandbox can't end or trace another.
fn one_vmm_cannot_touch_anothers(context: &Context) -> Result<()> {
    let containers = [context.sleeper()?, context.sleeper()?];
    let pids: Vec<u32> = leaks::our_processes()?
        .into_iter()
        .filter(|(_, line)| line.split(' ').next().is_some_and(|p| p.ends_with("/kata-like-vmm")))
        .map(|(pid, _)| pid)
        .collect();
    let ids = |pid: u32, name: &str| -> Result<Vec<u32>> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(field(&status, name)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let [a, b] = pids[..] else { bail!("two VMMs are expected: {pids:?}") };
    let (uid, gid) = (ids(a, "Uid")?[0], ids(a, "Gid")?[0]);
    if ids(b, "Uid")?.contains(&uid) || ids(b, "Gid")?.contains(&gid) {
        bail!("both VMMs are user {uid}, group {gid}");
    }
    let mut signal = std::process::Command::new("kill");
    signal.args(["-0", &b.to_string()]).uid(uid).gid(gid);
    if signal.status()?.success() {
        bail!("user {uid} may signal process {b}");
    }
    containers.into_iter().try_for_each(crate::context::Container::remove)
}

fn the_file_server_holds_only_file_capabilities(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let pid = pid_of("kata-like-fs")?;
    check_threads(pid, FILE_CAPABILITIES.iter().fold(0, |set, number| set | 1 << number))?;
    check_namespaces(pid)?;
    let seen: Vec<String> = fs::read_dir(format!("/proc/{pid}/root/"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    if seen != [container.id.as_str()] {
        bail!("the file server's root holds {seen:?}");
    }
    container.remove()
}

/// A container that can mount stands for a guest's kernel that is not as it should be: it makes its root writable.
fn a_read_only_root_is_so_for_the_guests_kernel_too(context: &Context) -> Result<()> {
    let container = context.container().flag("--read-only").flag("--cap-add=CAP_SYS_ADMIN");
    // A mount point that is missing is made before.
    let container = container.flag("--mount=type=tmpfs,src=tmpfs,dst=/made/by/runc");
    let script = "mount | grep -c ' /made/by/runc ' && mount -o remount,rw none / && \
        grep -q ' / rw' /proc/self/mountinfo; echo $?; echo > /new; echo > /bin/new";
    let said = container.output(&["sh", "-c", script])?;
    let refused = said.stderr.matches("Read-only file system").count();
    if said.text() != "1\n0" || refused != 2 {
        bail!("{:?}, {:?}", said.text(), said.stderr);
    }
    Ok(())
}

fn a_forbidden_system_call_kills_the_vmm(context: &Context) -> Result<()> {
    forbidden(context, "kata-like-vmm", "VMM")
}

fn a_forbidden_system_call_kills_the_file_server(context: &Context) -> Result<()> {
    forbidden(context, "kata-like-fs", "file server")
}

/// Makes a running process of ours call what its filter forbids; the container must be reported dead for it.
fn forbidden(context: &Context, program: &str, called: &str) -> Result<()> {
    let container = context.sleeper()?;
    let pid = pid_of(program)?;
    let mark = fs::metadata(context.containerd.log())?.len();
    ptrace::make_system_call(pid, nix::libc::SYS_socket)?;
    container.await_status("STOPPED")?;
    crate::crash::await_logged(context, mark, &[called, "forbidden system call"])?;
    let code = container.exit_status()?;
    if code == 0 {
        bail!("the container's exit code is 0");
    }
    command::eventually("the processes end", DEADLINE, || {
        Ok(leaks::our_processes()?.iter().all(|(p, _)| *p != pid))
    })
}
