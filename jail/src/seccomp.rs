//! Which system calls a thread may make.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// Why a filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list cannot be expressed as a program.
    #[error("cannot compile the seccomp filter")]
    Compile(#[source] BackendError),
    /// The kernel did not take it.
    #[error("cannot install the seccomp filter")]
    Install(#[source] seccompiler::Error),
}

/// The system calls that one kind of thread makes; any other ends the process with SIGSYS.
#[derive(Debug, Clone, Default)]
pub struct SyscallFilter {
    unconditional: Vec<i64>,
    by_argument: BTreeMap<i64, Vec<Condition>>,
}

/// What one argument, by its index, must be like; the low 32 bits count.
#[derive(Debug, Clone, Copy)]
enum Condition {
    Equal(u8, u32),
    Without(u8, u32),
}

impl Condition {
    fn rule(self) -> Result<SeccompRule, BackendError> {
        let (index, op, value) = match self {
            Self::Equal(index, value) => (index, SeccompCmpOp::Eq, value),
            Self::Without(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), 0),
        };
        let condition =
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, u64::from(value))?;
        SeccompRule::new(vec![condition])
    }
}

impl SyscallFilter {
    /// A filter that allows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows system calls (`libc::SYS_…`) with any arguments.
    #[must_use]
    pub fn allow(mut self, calls: &[i64]) -> Self {
        self.unconditional.extend_from_slice(calls);
        self
    }

    /// Allows a system call when the low 32 bits of its argument number `index` (from 0) are one of
    /// `values`: an ioctl's request, a prctl's option, a socket's family.
    #[must_use]
    pub fn allow_if(mut self, call: i64, index: u8, values: &[u32]) -> Self {
        let conditions = values.iter().map(|&value| Condition::Equal(index, value));
        self.by_argument.entry(call).or_default().extend(conditions);
        self
    }

    /// Allows a system call when its argument number `index` (from 0) has none of `bits`: an mmap that asks for no
    /// `PROT_EXEC`.
    #[must_use]
    pub fn allow_without(mut self, call: i64, index: u8, bits: u32) -> Self {
        self.by_argument.entry(call).or_default().push(Condition::Without(index, bits));
        self
    }

    /// Compiles the filter for this machine. The action on any other call is to kill the whole process.
    ///
    /// # Errors
    /// [`SeccompError::Compile`] when a list is empty or too long.
    pub fn compile(self) -> Result<CompiledFilter, SeccompError> {
        let mut rules = BTreeMap::new();
        for (call, conditions) in self.by_argument.into_iter().filter(|(_, c)| !c.is_empty()) {
            let alternatives: Result<Vec<_>, BackendError> =
                conditions.into_iter().map(Condition::rule).collect();
            rules.insert(call, alternatives.map_err(SeccompError::Compile)?);
        }
        // An empty list of alternatives is "always", so this is the wider of the two.
        rules.extend(self.unconditional.into_iter().map(|call| (call, Vec::new())));
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(SeccompError::Compile)?;
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)
            .and_then(BpfProgram::try_from)
            .map(CompiledFilter)
            .map_err(SeccompError::Compile)
    }
}

/// A [`SyscallFilter`] ready to be installed. Threads started afterwards inherit it.
#[derive(Debug, Clone)]
pub struct CompiledFilter(BpfProgram);

impl CompiledFilter {
    /// A filter that allows all but these system calls, which fail with `errno` instead. Another filter that does not
    /// allow them is the stronger one.
    ///
    /// # Errors
    /// [`SeccompError::Compile`] when the list is empty or too long.
    pub fn refusing(calls: &[i64], errno: i32) -> Result<Self, SeccompError> {
        let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(SeccompError::Compile)?;
        let refused = SeccompAction::Errno(errno as u32);
        SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)
            .and_then(BpfProgram::try_from)
            .map(Self)
            .map_err(SeccompError::Compile)
    }

    /// Installs the filter in the calling thread, for good. Sets `no_new_privs` too.
    ///
    /// # Errors
    /// [`SeccompError::Install`].
    pub fn apply(&self) -> Result<(), SeccompError> {
        apply_filter(&self.0).map_err(SeccompError::Install)
    }

    /// Installs the filter in every thread of the process, for good.
    ///
    /// # Errors
    /// [`SeccompError::Install`]; then no thread has it.
    pub fn apply_to_all_threads(&self) -> Result<(), SeccompError> {
        apply_filter_all_threads(&self.0).map_err(SeccompError::Install)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unconditional_rule_is_wider_than_a_conditional_one() {
        let filter = SyscallFilter::new()
            .allow_if(libc::SYS_ioctl, 1, &[1, 2])
            .allow(&[libc::SYS_ioctl, libc::SYS_read]);
        let wide = SyscallFilter::new().allow(&[libc::SYS_read, libc::SYS_ioctl]);
        assert_eq!(filter.compile().unwrap().0, wide.compile().unwrap().0);
    }

    #[test]
    fn no_value_allows_no_call() {
        let none = SyscallFilter::new().allow(&[libc::SYS_read]).allow_if(libc::SYS_ioctl, 1, &[]);
        let bare = SyscallFilter::new().allow(&[libc::SYS_read]);
        assert_eq!(none.compile().unwrap().0, bare.compile().unwrap().0);
    }

    #[test]
    fn an_argument_that_does_not_exist_is_refused() {
        let filter = SyscallFilter::new().allow_if(libc::SYS_ioctl, 6, &[1]);
        assert!(matches!(filter.compile(), Err(SeccompError::Compile(_))));
    }
}
