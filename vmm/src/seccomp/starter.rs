//! The thread that starts those of disks. Nothing that comes from a guest gets to it.

use jail::{CompiledFilter, SeccompError, SyscallFilter};

/// What a new thread of this process is to clone(2); with any less it would be a process.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;

/// A new thread's name, and its filter.
const PRCTL: [u32; 2] = [libc::PR_SET_NAME as u32, libc::PR_SET_NO_NEW_PRIVS as u32];

pub(super) fn filter() -> SyscallFilter {
    super::disk::filter()
        .allow(&[
            // Refused by [`without_clone3`], so not to be killed for.
            libc::SYS_clone3,
            // What the C library does on a new thread, and the standard library.
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_sched_getaffinity,
            // Its filter.
            libc::SYS_seccomp,
        ])
        .allow_if(libc::SYS_clone, 0, &[THREAD])
        .allow_if(libc::SYS_prctl, 0, &PRCTL)
}

/// What clone3(2) is to do lies in memory, where no filter looks; without it the C library takes clone(2).
pub(super) fn without_clone3() -> Result<CompiledFilter, SeccompError> {
    CompiledFilter::refusing(&[libc::SYS_clone3], libc::ENOSYS)
}
