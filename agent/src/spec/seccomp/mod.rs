//! Compiles `linux.seccomp` of a specification in the guest.
//!
//! A seccompiler program knows two actions, a profile any number. So a profile becomes several
//! programs, and the kernel takes the strictest answer: one program for each action that rules name
//! (that action for its calls, otherwise allow), and last one that gives the default action to every
//! call that no rule names.
//!
//! Programs of 32 bits have calls and numbers of their own, so each of these is made for them as well, if the
//! profile names their architecture; otherwise such a program is killed at its first call, as with libseccomp.
//! (Of a third kind, x32, the guest's kernel runs none.)

mod calls;

use calls::{Calls, Kind};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
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

/// What comes of a profile.
#[derive(Debug, Default)]
pub struct Compiled {
    /// The programs, in the order in which to install them.
    pub filters: Vec<Filter>,
    /// Names for which this kernel has no call: of other architectures, newer ones, or wrong.
    pub unknown: Vec<String>,
}

/// Compiles a profile. Names that this kernel does not have are left out, as libseccomp does: profiles name the
/// calls of every architecture.
///
/// # Errors
/// See [`UnsupportedFilter`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Compiled, UnsupportedFilter> {
    let short = profile.architectures().iter().flatten().any(|arch| *arch == Arch::ScmpArchX86);
    let kinds = if short { &[Kind::X86_64, Kind::I386][..] } else { &[Kind::X86_64] };
    let all: Vec<Calls> = kinds.iter().map(|kind| Calls::of(*kind)).collect();
    let mut programs = Vec::new();
    for calls in &all {
        for (start, program) in compile_for(calls, profile)? {
            programs.push(for_kind(calls.kind(), all.len() > 1, start, program));
        }
    }
    let flags = flags(profile);
    let filters = programs.into_iter().map(|program| Filter { program, flags }).collect();
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    let unknown = names.filter(|name| all.iter().all(|calls| calls.ways(name).is_empty()));
    Ok(Compiled { filters, unknown: unknown.cloned().collect() })
}

/// The programs for one kind of program, and what each is to start with.
fn compile_for(
    calls: &Calls,
    profile: &LinuxSeccomp,
) -> Result<Vec<(BpfProgram, BpfProgram)>, UnsupportedFilter> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut named = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        if action == default {
            continue;
        }
        add(calls, &mut named, entry)?;
        if action == SeccompAction::Allow {
            continue;
        }
        let place = by_action.iter().position(|(known, _)| *known == action).unwrap_or_else(|| {
            by_action.push((action.clone(), Rules::new()));
            by_action.len() - 1
        });
        add(calls, &mut by_action[place].1, entry)?;
    }
    let mut programs = Vec::new();
    for (action, rules) in by_action {
        programs.push((Vec::new(), program(rules, SeccompAction::Allow, action)?));
    }
    if default != SeccompAction::Allow {
        let mut newer = Vec::new();
        if !matches!(default, SeccompAction::Log | SeccompAction::Trace(_)) {
            newer = refuse_newer_calls(last_named(calls, profile));
        }
        programs.push((newer, program(named, default, SeccompAction::Allow)?));
    }
    if programs.is_empty() {
        // Nothing is refused, and the process is still one with a filter.
        let nothing = program(Rules::new(), SeccompAction::Allow, SeccompAction::KillProcess)?;
        programs.push((Vec::new(), nothing));
    }
    Ok(programs)
}

/// How many instructions seccompiler looks at the architecture with, first of all.
const ARCHITECTURE_CHECK: usize = 3;

/// Makes a program of seccompiler's, which knows no i386, one for that kind. `others`: another program judges
/// what is not of this kind; if there is none, it is killed.
fn for_kind(kind: Kind, others: bool, start: BpfProgram, program: BpfProgram) -> BpfProgram {
    let of_another = if others { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_KILL_PROCESS };
    let check = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 4),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (1, 0), kind.audit()),
        instruction(libc::BPF_RET | libc::BPF_K, (0, 0), of_another),
    ];
    let judges = program.into_iter().skip(ARCHITECTURE_CHECK);
    check.into_iter().chain(start).chain(judges).collect()
}

fn instruction(code: u32, (jt, jf): (u8, u8), k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
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
fn last_named(calls: &Calls, profile: &LinuxSeccomp) -> Option<i64> {
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    names.filter_map(|name| calls.number(name)).max()
}

/// Begins a program with ENOSYS for the calls that the profile's author can't have known: C libraries then
/// fall back to older ones, as they don't on EPERM.
fn refuse_newer_calls(last: Option<i64>) -> BpfProgram {
    let Some(last) = last.and_then(|last| u32::try_from(last).ok()) else { return Vec::new() };
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, (0, 1), last),
        instruction(libc::BPF_RET | libc::BPF_K, (0, 0), enosys),
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
fn add(calls: &Calls, rules: &mut Rules, entry: &LinuxSyscall) -> Result<(), UnsupportedFilter> {
    let wanted = alternatives(calls.kind(), entry.args().as_deref().unwrap_or_default())?;
    for way in entry.names().iter().flat_map(|name| calls.ways(name)) {
        // A call through another has its arguments in memory, where no filter sees them.
        let conditions = match way.first {
            None => wanted.clone(),
            Some((mask, value)) => vec![SeccompRule::new(vec![SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(mask),
                value,
            )?])?],
        };
        match rules.get_mut(&way.number) {
            None => {
                rules.insert(way.number, conditions);
            }
            Some(always) if always.is_empty() => {}
            Some(known) if conditions.is_empty() => known.clear(),
            Some(known) => known.extend(conditions),
        }
    }
    Ok(())
}

/// The conditions of an entry hold together, except that several on one argument are alternatives
/// (as in runc, for profiles that were written against it).
fn alternatives(
    kind: Kind,
    args: &[LinuxSeccompArg],
) -> Result<Vec<SeccompRule>, UnsupportedFilter> {
    let conditions = args.iter().map(|arg| condition(kind, arg)).collect::<Result<Vec<_>, _>>()?;
    let arguments: BTreeSet<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    if conditions.is_empty() {
        Ok(Vec::new())
    } else if arguments.len() == args.len() {
        Ok(vec![SeccompRule::new(conditions)?])
    } else {
        conditions.into_iter().map(|c| Ok(SeccompRule::new(vec![c])?)).collect()
    }
}

fn condition(kind: Kind, arg: &LinuxSeccompArg) -> Result<SeccompCondition, UnsupportedFilter> {
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
    let length = match kind {
        Kind::X86_64 => SeccompCmpArgLen::Qword,
        Kind::I386 => SeccompCmpArgLen::Dword,
    };
    Ok(SeccompCondition::new(index, length, operator, value)?)
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
mod tests;
