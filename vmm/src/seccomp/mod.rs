//! Which system calls each kind of thread may make; any other kills the process.
//!
//! The filters go on after everything is opened and the process is jailed. What a thread does not
//! do in its steady state is not in its list, even where it would be harmless.

mod disk;
mod io;
mod main_thread;
mod network;
mod starter;
mod vcpu;

use jail::{CompiledFilter, SeccompError, SyscallFilter};

/// The filter of each role, compiled.
pub struct Filters {
    /// The thread that serves the control socket.
    pub main_thread: CompiledFilter,
    /// vCPU threads.
    pub vcpu: CompiledFilter,
    /// Threads that run devices' workers.
    pub io: CompiledFilter,
    /// The one that runs those of network interfaces.
    pub network: CompiledFilter,
    /// Threads of disks.
    pub disk: CompiledFilter,
    /// The one that starts them.
    pub starter: Starter,
}

/// The filters of a thread that starts others.
#[derive(Clone)]
pub struct Starter([CompiledFilter; 2]);

impl Starter {
    /// Installs both in the calling thread, for good.
    ///
    /// # Errors
    /// [`SeccompError::Install`].
    pub fn apply(&self) -> Result<(), SeccompError> {
        self.0.iter().try_for_each(CompiledFilter::apply)
    }
}

impl Filters {
    /// Compiles all of them, for threads of the calling process.
    ///
    /// # Errors
    /// [`SeccompError::Compile`], on an architecture that has none.
    pub fn compile() -> Result<Self, SeccompError> {
        let compile = |role| common(role, std::process::id()).compile();
        Ok(Self {
            main_thread: compile(main_thread::filter())?,
            vcpu: compile(vcpu::filter())?,
            io: compile(io::filter())?,
            network: compile(network::filter())?,
            disk: compile(disk::filter())?,
            starter: Starter([starter::without_clone3()?, compile(starter::filter())?]),
        })
    }
}

/// What any thread of a Rust program does; `process` is its own.
fn common(filter: SyscallFilter, process: u32) -> SyscallFilter {
    filter
        .allow(&[
            // Locks, channels (which yield while another thread is in the middle of a send), and the
            // end of a thread.
            libc::SYS_futex,
            libc::SYS_sched_yield,
            // The allocator.
            libc::SYS_brk,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
            // Return from a signal's handler, and blocking signals around the end of a thread.
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigprocmask,
            libc::SYS_sigaltstack,
            // Restart of a call that a signal interrupted.
            libc::SYS_restart_syscall,
            // Dropped descriptors.
            libc::SYS_close,
            // The end.
            libc::SYS_exit,
            libc::SYS_exit_group,
            // A panic's abort: raise(SIGABRT).
            libc::SYS_gettid,
            libc::SYS_getpid,
            libc::SYS_rt_sigaction,
            // Time, where the vDSO can't tell it.
            libc::SYS_clock_gettime,
            // Messages on standard error, and eventfds.
            libc::SYS_write,
            libc::SYS_read,
            // The random keys of hash maps.
            libc::SYS_getrandom,
        ])
        // That abort, and kicks of vCPUs: signals to this process alone, for others may have its uid.
        .allow_if(libc::SYS_tgkill, 0, &[process])
        // The allocator again: memory of any kind, but never executable.
        .allow_if(libc::SYS_mmap, 2, &PROTECTIONS)
        .allow_if(libc::SYS_mprotect, 2, &PROTECTIONS)
        // Whether a dropped descriptor is open (debug builds of the standard library).
        .allow_if(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32])
}

const PROTECTIONS: [u32; 3] =
    [libc::PROT_NONE as u32, libc::PROT_READ as u32, (libc::PROT_READ | libc::PROT_WRITE) as u32];

#[cfg(test)]
mod tests;
