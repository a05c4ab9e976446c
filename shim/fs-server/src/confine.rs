//! What the file server gives up before it reads its first message.

use anyhow::{Context, Result};
use jail::{Capabilities, CompiledFilter, Identity, Jail, Namespaces, Root, SyscallFilter};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs::{self, File};
use std::path::Path;
use std::process;

/// Most descriptors: each file that the guest knows costs one.
const MAX_OPEN_FILES: u64 = 1_000_000;

/// `/proc/self/fd`, by which an `O_PATH` descriptor is opened for reading or writing.
///
/// As a mount of its own, so that `..` does not lead from it to the rest of `/proc`.
///
/// # Errors
/// The caller may not make mounts.
pub fn own_descriptors() -> Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, "/proc/self/fd", flags).context("cannot open /proc/self/fd")?;
    Ok(mount.into())
}

/// Makes the directory all that there is, and keeps the rights over files that a guest's root needs.
pub(crate) fn enter_jail(shared_dir: &Path) -> Result<()> {
    let jail = Jail {
        identity: Some(Identity { uid: 0, gid: 0 }),
        // No DAC_READ_SEARCH: it would allow open_by_handle_at, which reaches every file of a file system,
        // also those outside of the directory.
        capabilities: Capabilities::CHOWN
            | Capabilities::DAC_OVERRIDE
            | Capabilities::FOWNER
            | Capabilities::FSETID
            | Capabilities::SETGID
            | Capabilities::SETUID
            | Capabilities::MKNOD
            | Capabilities::SETFCAP,
        root: Root::Directory { path: shared_dir.to_path_buf(), receive_mounts: true },
        namespaces: Namespaces::ALL,
        open_files: Some(max_open_files()),
    };
    Ok(jail.enter()?)
}

/// What the system allows one process, up to [`MAX_OPEN_FILES`].
fn max_open_files() -> u64 {
    let system = fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let system = system.and_then(|text| text.trim().parse().ok()).unwrap_or(4096);
    MAX_OPEN_FILES.min(system)
}

/// The system calls of a thread that serves requests.
pub(crate) fn syscall_filter() -> Result<CompiledFilter> {
    let filter = SyscallFilter::new()
        // The vhost-user socket, guest memory and queue notifications.
        .allow(&[
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_close,
        ])
        // The memory allocator, and guest memory.
        .allow(&[
            libc::SYS_brk,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_madvise,
            libc::SYS_futex,
            libc::SYS_sched_yield,
            libc::SYS_getrandom,
        ])
        .allow_without(libc::SYS_mmap, 2, libc::PROT_EXEC as u32)
        .allow_without(libc::SYS_mprotect, 2, libc::PROT_EXEC as u32)
        // Contents of files.
        .allow(&[
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_lseek,
            libc::SYS_fallocate,
            libc::SYS_ftruncate,
            libc::SYS_copy_file_range,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_syncfs,
            libc::SYS_flock,
            libc::SYS_dup,
        ])
        // Names and directories.
        .allow(&[
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_getdents64,
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_readlinkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_fchdir,
            libc::SYS_umask,
        ])
        // Attributes.
        .allow(&[
            libc::SYS_statx,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_fstatfs,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
            libc::SYS_getxattr,
            libc::SYS_fgetxattr,
            libc::SYS_setxattr,
            libc::SYS_fsetxattr,
            libc::SYS_listxattr,
            libc::SYS_flistxattr,
            libc::SYS_removexattr,
            libc::SYS_fremovexattr,
        ])
        // Acting for a user of the guest, and without FSETID.
        .allow(&[
            libc::SYS_geteuid,
            libc::SYS_getegid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_setgroups,
            libc::SYS_capget,
            libc::SYS_capset,
            libc::SYS_gettid,
        ])
        .allow_if(libc::SYS_prctl, 0, &[libc::PR_CAPBSET_READ as u32, libc::PR_CAP_AMBIENT as u32])
        .allow_if(
            libc::SYS_fcntl,
            1,
            &[
                libc::F_DUPFD_CLOEXEC as u32,
                libc::F_GETFD as u32,
                libc::F_GETFL as u32,
                libc::F_SETFL as u32,
            ],
        )
        // The end: by itself, or by a panic. A signal reaches this process alone.
        .allow(&[
            libc::SYS_clock_gettime,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_getpid,
        ])
        .allow_if(libc::SYS_tgkill, 0, &[process::id()]);
    Ok(filter.compile()?)
}
