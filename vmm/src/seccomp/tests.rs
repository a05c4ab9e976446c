use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// What a child under `filter` comes to that makes one system call without arguments.
fn fate(filter: &CompiledFilter, call: i64) -> WaitStatus {
    // SAFETY: the child makes only system calls, on a filter compiled before.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let applied = filter.apply().is_ok();
            // SAFETY: none of the calls used here has an argument that is a pointer.
            unsafe {
                libc::syscall(call, 0, 0, 0, 0, 0, 0);
                libc::_exit(if applied { 7 } else { 8 });
            }
        }
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
    }
}

fn killed(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _))
}

fn survived(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_, 7))
}

#[test]
fn a_call_outside_the_list_kills_the_process() {
    let filters = Filters::compile().unwrap();
    let forbidden = [
        libc::SYS_openat,
        libc::SYS_execve,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_setuid,
        libc::SYS_unshare,
        libc::SYS_io_uring_setup,
        libc::SYS_getppid,
    ];
    for filter in [&filters.main_thread, &filters.vcpu, &filters.io] {
        for call in forbidden {
            assert!(killed(fate(filter, call)), "system call {call}");
        }
        // An ioctl with a request that is on no list, and one that is KVM's but not ours.
        assert!(killed(fate(filter, libc::SYS_ioctl)));
        assert!(survived(fate(filter, libc::SYS_gettid)));
        assert!(survived(fate(filter, libc::SYS_read)));
    }
}

#[test]
fn each_role_has_only_its_own_calls() {
    let filters = Filters::compile().unwrap();
    assert!(killed(fate(&filters.vcpu, libc::SYS_recvmsg)));
    assert!(killed(fate(&filters.vcpu, libc::SYS_pwrite64)));
    assert!(killed(fate(&filters.main_thread, libc::SYS_epoll_wait)));
    assert!(killed(fate(&filters.main_thread, libc::SYS_socketpair)));
    assert!(killed(fate(&filters.io, libc::SYS_ftruncate)));
    assert!(survived(fate(&filters.io, libc::SYS_pwritev)));
}

#[test]
fn no_thread_makes_executable_memory() {
    let filters = Filters::compile().unwrap();
    for filter in [&filters.main_thread, &filters.vcpu, &filters.io] {
        // SAFETY: as in `fate`; the mapping is anonymous and is not used.
        let status = match unsafe { fork() }.unwrap() {
            // SAFETY: plain system calls in a process that ends with them.
            ForkResult::Child => unsafe {
                let _ = filter.apply();
                let (prot, flags) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
                libc::_exit(7)
            },
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        };
        assert!(killed(status));
    }
}
