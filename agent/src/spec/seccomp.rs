//! Compiles `linux.seccomp` of a specification in the guest.
//!
//! A seccompiler program knows two actions, a profile any number. So a profile becomes several
//! programs, and the kernel takes the strictest answer: one program for each action that rules name
//! (that action for its calls, otherwise allow), and last one that gives the default action to every
//! call that no rule names.

use crate::spec::syscalls;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// A program, and the flags of seccomp(2) with which it is installed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    program: BpfProgram,
    flags: libc::c_ulong,
}

/// The calls of a program and when each matches; no rules: always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Why a profile cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum UnsupportedFilter {
    /// A listener would live on the host.
    #[error("SCMP_ACT_NOTIFY needs a listener, which the guest has not")]
    Notify,
    /// It does not compile.
    #[error("the filter does not compile: {0}")]
    Backend(#[from] seccompiler::BackendError),
    /// An argument's number is not 0 to 5.
    #[error("argument {0} of a system call")]
    Argument(usize),
}

/// The programs of a profile, in the order in which to install them.
///
/// Names that x86_64 does not have are left out, as libseccomp does: profiles name the calls of every
/// architecture.
///
/// # Errors
/// See [`UnsupportedFilter`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<Filter>, UnsupportedFilter> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut named = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        if action == default {
            continue;
        }
        add(&mut named, entry)?;
        if action == SeccompAction::Allow {
            continue;
        }
        let place = by_action.iter().position(|(known, _)| *known == action).unwrap_or_else(|| {
            by_action.push((action.clone(), Rules::new()));
            by_action.len() - 1
        });
        add(&mut by_action[place].1, entry)?;
    }
    let mut programs = Vec::new();
    for (action, rules) in by_action {
        programs.push(program(rules, SeccompAction::Allow, action)?);
    }
    if default != SeccompAction::Allow {
        let mut newer = Vec::new();
        if !matches!(default, SeccompAction::Log | SeccompAction::Trace(_)) {
            newer = refuse_newer_calls(last_named(profile));
        }
        newer.extend(program(named, default, SeccompAction::Allow)?);
        programs.push(newer);
    }
    if programs.is_empty() {
        // Nothing is refused, and the process is still one with a filter.
        programs.push(program(Rules::new(), SeccompAction::Allow, SeccompAction::KillProcess)?);
    }
    let flags = flags(profile);
    Ok(programs.into_iter().map(|program| Filter { program, flags }).collect())
}

/// The flags that mean something to a process of one thread without a listener; by default runc's.
fn flags(profile: &LinuxSeccomp) -> libc::c_ulong {
    use LinuxSeccompFilterFlag as Flag;
    let Some(flags) = profile.flags() else { return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// The highest number that the profile names: calls above it are newer than the profile.
fn last_named(profile: &LinuxSeccomp) -> Option<i64> {
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    names.filter_map(|name| syscalls::number(name)).max()
}

/// Begins a program with ENOSYS for the calls that the profile's author can't have known: C libraries then
/// fall back to older ones, as they don't on EPERM.
fn refuse_newer_calls(last: Option<i64>) -> BpfProgram {
    let Some(last) = last.and_then(|last| u32::try_from(last).ok()) else { return Vec::new() };
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        sock_filter {
            code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        },
        sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: last,
        },
        sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: enosys },
    ]
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, UnsupportedFilter> {
    Ok(SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()?)
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
) -> Result<SeccompAction, UnsupportedFilter> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActErrno => {
            SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32))
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            SeccompAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(errno.unwrap_or(0)),
        LinuxSeccompAction::ScmpActNotify => return Err(UnsupportedFilter::Notify),
    })
}

/// Adds the calls of an entry. A call that is there without conditions stays so.
fn add(rules: &mut Rules, entry: &LinuxSyscall) -> Result<(), UnsupportedFilter> {
    let conditions = alternatives(entry.args().as_deref().unwrap_or_default())?;
    for number in entry.names().iter().filter_map(|name| syscalls::number(name)) {
        match rules.get_mut(&number) {
            None => {
                rules.insert(number, conditions.clone());
            }
            Some(always) if always.is_empty() => {}
            Some(known) if conditions.is_empty() => known.clear(),
            Some(known) => known.extend(conditions.iter().cloned()),
        }
    }
    Ok(())
}

/// The conditions of an entry hold together, except that several on one argument are alternatives
/// (as in runc, for profiles that were written against it).
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<SeccompRule>, UnsupportedFilter> {
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let arguments: BTreeSet<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    if conditions.is_empty() {
        Ok(Vec::new())
    } else if arguments.len() == args.len() {
        Ok(vec![SeccompRule::new(conditions)?])
    } else {
        conditions.into_iter().map(|c| Ok(SeccompRule::new(vec![c])?)).collect()
    }
}

fn condition(arg: &LinuxSeccompArg) -> Result<SeccompCondition, UnsupportedFilter> {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    let index = u8::try_from(arg.index()).map_err(|_| UnsupportedFilter::Argument(arg.index()))?;
    Ok(SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)?)
}

/// Installs a program for this thread, without touching `no_new_privs`.
///
/// # Errors
/// `EACCES` without `no_new_privs` and `CAP_SYS_ADMIN`; `EINVAL` for a program that is too long.
pub fn install(filter: &Filter) -> io::Result<()> {
    let Filter { program, flags } = filter;
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions out of the program, which outlives the call,
    // and seccompiler's instructions have the kernel's layout.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, *flags, &raw const header)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    /// Runs `body` in a thread under the profile.
    fn under<T: Send>(json: serde_json::Value, body: impl FnOnce() -> T + Send) -> T {
        let programs = compile(&profile(json)).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: prctl with these arguments touches no memory.
                    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                    for program in &programs {
                        install(program).unwrap();
                    }
                    body()
                })
                .join()
                .unwrap()
        })
    }

    fn errno_of(number: i64, argument: i64) -> i32 {
        // SAFETY: the calls below take plain numbers and touch no memory of ours.
        match unsafe { libc::syscall(number, argument, 0, 0, 0, 0, 0) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap(),
            _ => 0,
        }
    }

    #[test]
    fn a_deny_list_denies_and_lets_the_rest_through() {
        let json = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }]
        });
        under(json, || {
            assert_eq!(errno_of(libc::SYS_getppid, 0), 38);
            assert_eq!(errno_of(libc::SYS_getpid, 0), 0);
        });
    }

    #[test]
    fn an_allow_list_with_a_second_error_answers_three_ways() {
        let all: Vec<String> = [
            "getpid",
            "futex",
            "munmap",
            "mmap",
            "mprotect",
            "madvise",
            "exit",
            "rt_sigprocmask",
            "sigaltstack",
            "write",
            "seccomp",
            "rseq",
            "set_robust_list",
        ]
        .map(String::from)
        .into();
        let json = serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "syscalls": [
                { "names": all, "action": "SCMP_ACT_ALLOW" },
                { "names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            ]
        });
        let answers = under(json, || {
            [libc::SYS_getpid, libc::SYS_getuid, libc::SYS_getppid].map(|call| errno_of(call, 0))
        });
        assert_eq!(answers, [0, 38, libc::EPERM]);
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let eq =
            |value: u64| serde_json::json!({ "index": 0, "value": value, "op": "SCMP_CMP_EQ" });
        let json = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                           "args": [eq(0), eq(1)] }]
        });
        under(json, || {
            assert_eq!(errno_of(libc::SYS_getpgid, 0), 7);
            assert_eq!(errno_of(libc::SYS_getpgid, 1), 7);
            assert_ne!(errno_of(libc::SYS_getpgid, 2), 7);
        });
    }

    #[test]
    fn a_masked_condition_takes_the_mask_first() {
        let json = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                           "args": [{ "index": 0, "value": 0xf0, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ" }] }]
        });
        under(json, || {
            assert_eq!(errno_of(libc::SYS_personality, 0x11), 7);
            assert_ne!(errno_of(libc::SYS_personality, 0xffff_ffff), 7);
        });
    }

    #[test]
    fn an_unconditional_rule_wins_over_a_conditional_one_in_any_order() {
        let always =
            serde_json::json!({ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7 });
        let sometimes = serde_json::json!({ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
            "args": [{ "index": 0, "value": 99, "op": "SCMP_CMP_EQ" }] });
        for rules in [[always.clone(), sometimes.clone()], [sometimes, always]] {
            let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
            under(json, || assert_eq!(errno_of(libc::SYS_getpgid, 0), 7));
        }
    }

    /// 0 when the child under the profile got `errno` from `call`; the signal that ended it otherwise.
    fn in_a_child(json: serde_json::Value, call: i64, argument: i64, errno: i32) -> i32 {
        let filters = compile(&profile(json)).unwrap();
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: neither call touches memory of ours.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            let installed = filters.iter().all(|filter| install(filter).is_ok());
            let got = errno_of(call, argument);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(if installed && got == errno { 0 } else { 100 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
    }

    #[test]
    fn each_action_does_what_it_says() {
        let rule = |action: &str| {
            serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["getppid"], "action": action, "errnoRet": 7 }] })
        };
        for (action, expected) in [
            ("SCMP_ACT_KILL", libc::SIGSYS),
            ("SCMP_ACT_KILL_THREAD", libc::SIGSYS),
            ("SCMP_ACT_KILL_PROCESS", libc::SIGSYS),
            ("SCMP_ACT_TRAP", libc::SIGSYS),
        ] {
            assert_eq!(in_a_child(rule(action), libc::SYS_getppid, 0, 0), expected, "{action}");
        }
        // Without a tracer SCMP_ACT_TRACE is ENOSYS.
        for (action, errno) in [
            ("SCMP_ACT_ERRNO", 7),
            ("SCMP_ACT_TRACE", libc::ENOSYS),
            ("SCMP_ACT_LOG", 0),
            ("SCMP_ACT_ALLOW", 0),
        ] {
            assert_eq!(in_a_child(rule(action), libc::SYS_getppid, 0, errno), 0, "{action}");
        }
    }

    #[test]
    fn every_comparison_compares() {
        for (operator, matching, other) in [
            ("SCMP_CMP_NE", [4, 6], 5),
            ("SCMP_CMP_LT", [0, 4], 5),
            ("SCMP_CMP_LE", [4, 5], 6),
            ("SCMP_CMP_EQ", [5, 5], 6),
            ("SCMP_CMP_GE", [5, 6], 4),
            ("SCMP_CMP_GT", [6, 1 << 40], 5),
        ] {
            let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99,
                               "args": [{ "index": 0, "value": 5, "op": operator }] }] });
            under(json, || {
                for argument in matching {
                    assert_eq!(errno_of(libc::SYS_getpgid, argument), 99, "{operator} {argument}");
                }
                assert_ne!(errno_of(libc::SYS_getpgid, other), 99, "{operator} {other}");
            });
        }
    }

    #[test]
    fn calls_newer_than_the_profile_are_as_if_not_there() {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["exit_group", "openat2"], "action": "SCMP_ACT_ALLOW" }] });
        let newer = libc::SYS_faccessat2;
        assert_eq!(in_a_child(json.clone(), newer, 0, libc::ENOSYS), 0);
        assert_eq!(in_a_child(json, libc::SYS_getppid, 0, libc::EPERM), 0);
    }

    #[test]
    fn a_profile_that_refuses_nothing_is_a_filter_too() {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        assert_eq!(in_a_child(json, libc::SYS_getppid, 0, 0), 0);
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        assert_eq!(compile(&profile(json)).unwrap().len(), 1);
    }

    #[test]
    fn flags_are_kept_and_the_default_is_runcs() {
        let with = |flags: serde_json::Value| {
            let json = serde_json::json!({ "defaultAction": "SCMP_ACT_LOG", "flags": flags });
            compile(&profile(json)).unwrap()[0].flags
        };
        assert_eq!(with(serde_json::Value::Null), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
        assert_eq!(with(serde_json::json!([])), 0);
        let all = ["LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"]
            .map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}"));
        let expected = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        assert_eq!(with(serde_json::json!(all)), expected);
    }

    #[test]
    fn a_listener_and_a_seventh_argument_are_refused() {
        let notify = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }] });
        assert!(matches!(compile(&profile(notify)), Err(UnsupportedFilter::Notify)));
        let seventh = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_KILL",
                           "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }] });
        assert!(compile(&profile(seventh)).is_err());
    }
}
