//! The resource limits that a container's processes have where its specification sets none: this process's, which
//! they would inherit on the host.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType as Kind};
use rustix::process::{Resource, getrlimit};

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

/// All of them, as the runtime-spec has them.
pub fn own() -> Vec<PosixRlimit> {
    ALL.iter().filter_map(|(kind, resource)| limit(*kind, *resource)).collect()
}

fn limit(kind: Kind, resource: Resource) -> Option<PosixRlimit> {
    let limit = getrlimit(resource);
    // The system's number for "none" is the runtime-spec's.
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let builder = PosixRlimitBuilder::default().typ(kind);
    builder.soft(number(limit.current)).hard(number(limit.maximum)).build().ok()
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
    }
}
