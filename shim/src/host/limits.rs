//! The resource limits that a container's processes have where its specification sets none: those that this process was
//! started with, which they would inherit on the host.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType as Kind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;
use tokio::process::Command;

const ALL: [(Kind, Resource); 16] = [
    (Kind::RlimitCpu, Resource::Cpu),
    (Kind::RlimitFsize, Resource::Fsize),
    (Kind::RlimitData, Resource::Data),
    (Kind::RlimitStack, Resource::Stack),
    (Kind::RlimitCore, Resource::Core),
    (Kind::RlimitRss, Resource::Rss),
    (Kind::RlimitNproc, Resource::Nproc),
    (Kind::RlimitNofile, Resource::Nofile),
    (Kind::RlimitMemlock, Resource::Memlock),
    (Kind::RlimitAs, Resource::As),
    (Kind::RlimitLocks, Resource::Locks),
    (Kind::RlimitSigpending, Resource::Sigpending),
    (Kind::RlimitMsgqueue, Resource::Msgqueue),
    (Kind::RlimitNice, Resource::Nice),
    (Kind::RlimitRtprio, Resource::Rtprio),
    (Kind::RlimitRttime, Resource::Rttime),
];

/// The most open files that the guest's kernel takes a limit of (`fs.nr_open`).
pub const MOST_FILES: u64 = 1 << 30;

/// The limit of open files before [`raise_open_files`].
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// All of them, as the runtime-spec has them.
pub fn own() -> Vec<PosixRlimit> {
    ALL.iter().filter_map(|(kind, resource)| limit(*kind, *resource)).collect()
}

fn limit(kind: Kind, resource: Resource) -> Option<PosixRlimit> {
    let before = OPEN_FILES.get().filter(|_| resource == Resource::Nofile);
    let limit = before.copied().unwrap_or_else(|| getrlimit(resource));
    // The system's number for "none" is the runtime-spec's.
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let builder = PosixRlimitBuilder::default().typ(kind);
    builder.soft(number(limit.current)).hard(number(limit.maximum)).build().ok()
}

/// Lets this process open as many files as it may: it has several for each process of the guest's, and each stream.
pub fn raise_open_files() {
    let before = OPEN_FILES.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("raise the limit of open files: {error}");
    }
}

/// Starts a program that is not ours with the limit that this process was started with: there are those that try each
/// number below it.
pub fn pass_on(command: &mut Command) {
    let Some(before) = OPEN_FILES.get() else { return };
    // What can't be lowered stays: no reason not to start it.
    let set = move || {
        let _ = setrlimit(Resource::Nofile, *before);
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_the_one_that_the_kernel_tells_of_this_process() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let own = own();
        assert_eq!(own.len(), text.lines().count() - 1);
        let told = |name: &str| -> Vec<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let numbers = line.split_whitespace().take(2);
            numbers.map(|n| n.parse().unwrap_or(u64::MAX)).collect()
        };
        for (kind, name) in [
            (Kind::RlimitNofile, "Max open files"),
            (Kind::RlimitStack, "Max stack size"),
            (Kind::RlimitNproc, "Max processes"),
            (Kind::RlimitRttime, "Max realtime timeout"),
        ] {
            let limit = own.iter().find(|limit| limit.typ() == kind).unwrap();
            assert_eq!([limit.soft(), limit.hard()], told(name)[..], "{name}");
        }
        // As many files as this process may open, and for whom it starts and the containers as before.
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit { current: before.maximum.map(|hard| hard / 2), ..before };
        setrlimit(Resource::Nofile, lower).unwrap();
        raise_open_files();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, raised.maximum);
        let files = super::limit(Kind::RlimitNofile, Resource::Nofile).unwrap();
        assert_eq!(Some(files.soft()), lower.current);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n"]);
        let mut command = Command::from(command);
        pass_on(&mut command);
        let told = command.as_std_mut().output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert_eq!(told.trim().parse().ok(), lower.current);
    }
}
