//! The seccomp profile of a container that brings none of its own, and what one's flags come to.
//!
//! It names what an ordinary program has no use for: calls that need a capability which such a container
//! lacks, that reach other processes, or that have given much trouble. Everything else is allowed, since a
//! container that breaks its kernel has broken only its own.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
    LinuxSyscallBuilder,
};

/// Refused with EPERM.
const REFUSED: [&str; 57] = [
    // Clocks, modules, swap, quotas, accounting: of the whole machine.
    "acct",
    "clock_adjtime",
    "clock_settime",
    "settimeofday",
    "stime",
    "create_module",
    "delete_module",
    "finit_module",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "reboot",
    "swapoff",
    "swapon",
    "quotactl",
    "quotactl_fd",
    "syslog",
    "vhangup",
    // Mounts and namespaces.
    "mount",
    "umount",
    "umount2",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "pivot_root",
    "setns",
    "unshare",
    // Keys, which have no namespace.
    "add_key",
    "keyctl",
    "request_key",
    // Other processes, and memory policy.
    "kcmp",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "pidfd_getfd",
    "get_mempolicy",
    "set_mempolicy",
    "mbind",
    "migrate_pages",
    "move_pages",
    // Wide doors into the kernel.
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "open_by_handle_at",
    "lookup_dcookie",
    "iopl",
    "ioperm",
    "uselib",
    "ustat",
    "_sysctl",
];

/// `CLONE_NEW…`: of clone's flags those that make a namespace.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The profile.
///
/// # Errors
/// None in practice: the parts are constants.
pub fn default_profile() -> Result<LinuxSeccomp, OciSpecError> {
    let eperm = libc::EPERM as u32;
    let mut rules = vec![rule(&REFUSED, eperm, Vec::new())?];
    for bit in (0..32).map(|bit| 1 << bit).filter(|bit| NEW_NAMESPACES & bit != 0) {
        let flag = LinuxSeccompArgBuilder::default()
            .index(0_usize)
            .value(bit)
            .value_two(bit)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .build()?;
        rules.push(rule(&["clone"], eperm, vec![flag])?);
    }
    // Its flags lie in memory, where no filter sees them: C libraries fall back to clone.
    rules.push(rule(&["clone3"], libc::ENOSYS as u32, Vec::new())?);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86])
        .syscalls(rules)
        .build()
}

/// The flags of seccomp(2) with which the agent installs a profile (`agent/src/spec/seccomp/`), for those who look for them
/// in the log.
pub fn flags(profile: &LinuxSeccomp) -> u64 {
    use LinuxSeccompFilterFlag as Flag;
    let flag = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    let named =
        profile.flags().as_ref().map(|all| all.iter().map(flag).fold(0, |all, one| all | one));
    named.unwrap_or(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW)
}

fn rule(
    names: &[&str],
    errno: u32,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(names.iter().map(ToString::to_string).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno)
        .args(args)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_that_are_named_and_by_default_that_of_speculation() {
        let of = |flags: serde_json::Value| {
            let mut profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"});
            profile["flags"] = flags;
            serde_json::from_value(profile).map(|profile| super::flags(&profile))
        };
        let named = |words: &[&str]| {
            let words = words.iter().map(|word| format!("SECCOMP_FILTER_FLAG_{word}"));
            of(words.collect::<Vec<_>>().into())
        };
        assert_eq!(of(serde_json::Value::Null).unwrap(), 4);
        assert_eq!(named(&[]).unwrap(), 0);
        assert_eq!(named(&["TSYNC", "WAIT_KILLABLE_RECV"]).unwrap(), 0);
        assert_eq!(named(&["LOG", "TSYNC"]).unwrap(), 2);
        assert_eq!(named(&["SPEC_ALLOW", "LOG"]).unwrap(), 6);
        let refused = named(&["NEW_LISTENER"]).unwrap_err().to_string();
        assert!(refused.contains("SECCOMP_FILTER_FLAG_NEW_LISTENER"), "{refused}");
    }

    #[test]
    fn every_flag_of_a_namespace_is_refused_and_threads_are_not() {
        let profile = default_profile().unwrap();
        let flags: u64 = profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.names() == &["clone"])
            .flat_map(|rule| rule.args().clone().unwrap_or_default())
            .fold(0, |all, arg| all | arg.value());
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        assert_eq!(flags, u64::from(namespaces.cast_unsigned()));
        assert_eq!(flags & (libc::CLONE_THREAD | libc::CLONE_VM) as u64, 0);
    }
}
