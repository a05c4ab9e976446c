use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::collections::HashMap;
use std::process::Command;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration;

/// What a child under `filter` comes to that makes one system call without arguments.
fn fate(filter: &CompiledFilter, call: i64) -> WaitStatus {
    fate_with(filter, call, [0; 3])
}

/// The same with arguments, none of which is a pointer.
fn fate_with(filter: &CompiledFilter, call: i64, arguments: [i64; 3]) -> WaitStatus {
    // SAFETY: the child makes only system calls, on a filter compiled before.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let applied = filter.apply().is_ok();
            let [first, second, third] = arguments;
            // SAFETY: none of the calls used here has an argument that is a pointer.
            unsafe {
                libc::syscall(call, first, second, third, 0, 0, 0);
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

/// All but the one that starts threads.
fn all(filters: &Filters) -> [&CompiledFilter; 5] {
    [&filters.main_thread, &filters.vcpu, &filters.io, &filters.network, &filters.disk]
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
    for filter in all(&filters) {
        for call in forbidden {
            assert!(killed(fate(filter, call)), "system call {call}");
        }
        // An ioctl with a request that is on no list, and one that is KVM's but not ours.
        assert!(killed(fate(filter, libc::SYS_ioctl)));
        assert!(survived(fate(filter, libc::SYS_gettid)));
        assert!(survived(fate(filter, libc::SYS_read)));
        assert!(survived(fate(filter, libc::SYS_sched_yield)));
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
    assert!(killed(fate(&filters.io, libc::SYS_pwritev)));
    assert!(survived(fate(&filters.disk, libc::SYS_pwritev)));
    assert!(killed(fate(&filters.disk, libc::SYS_sendmsg)));
    let discard = |filter| fate_with(filter, libc::SYS_ioctl, [-1, 0x1277, 0]);
    assert!(survived(discard(&filters.disk)) && killed(discard(&filters.io)));
    assert!(killed(fate(&filters.io, libc::SYS_writev)));
    assert!(killed(fate(&filters.network, libc::SYS_pwritev)));
    assert!(killed(fate(&filters.network, libc::SYS_sendmsg)));
    assert!(survived(fate(&filters.network, libc::SYS_writev)));
    let (no_fd, set_offload) = (-1, i64::from(crate::devices::net::TUNSETOFFLOAD));
    assert!(survived(fate_with(&filters.network, libc::SYS_ioctl, [no_fd, set_offload, 0])));
    assert!(killed(fate_with(&filters.io, libc::SYS_ioctl, [no_fd, set_offload, 0])));
    for request in crate::devices::net::vhost_requests() {
        let asked = |filter| fate_with(filter, libc::SYS_ioctl, [no_fd, i64::from(request), 0]);
        assert!(survived(asked(&filters.network)), "{request:#x}");
        assert!(killed(asked(&filters.io)) && killed(asked(&filters.main_thread)), "{request:#x}");
    }
    // Of vhost's, what is not ours: VHOST_SET_LOG_BASE.
    assert!(killed(fate_with(&filters.network, libc::SYS_ioctl, [no_fd, 0x4008_af04, 0])));
}

#[test]
fn no_thread_makes_executable_memory() {
    let filters = Filters::compile().unwrap();
    for filter in all(&filters) {
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

#[test]
fn signals_go_to_the_own_process_alone() {
    let filters = Filters::compile().unwrap();
    let own = i64::from(std::process::id());
    for filter in all(&filters) {
        // No thread has the number 0x7fff_ffff, so what is allowed does nothing.
        let signal = |process| fate_with(filter, libc::SYS_tgkill, [process, 0x7fff_ffff, 0]);
        assert!(survived(signal(own)));
        assert!(killed(signal(own + 1)));
        assert!(killed(signal(1)));
        assert!(killed(fate_with(filter, libc::SYS_kill, [own, 0, 0])));
    }
}

#[test]
fn a_stream_of_the_guests_is_a_unix_socket() {
    let io = Filters::compile().unwrap().io;
    let pair = |family| fate_with(&io, libc::SYS_socketpair, [family, libc::SOCK_STREAM.into(), 0]);
    assert!(survived(pair(libc::AF_UNIX.into())));
    for family in [libc::AF_TIPC, libc::AF_INET, libc::AF_NETLINK, libc::AF_BLUETOOTH] {
        assert!(killed(pair(family.into())), "family {family}");
    }
}

/// What a process under the starter's filters comes to that makes one system call.
fn starter(call: i64, arguments: [i64; 3]) -> WaitStatus {
    let filters = Filters::compile().unwrap().starter;
    // SAFETY: the child makes only system calls, on filters compiled before.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let applied = filters.apply().is_ok();
            let [first, second, third] = arguments;
            // SAFETY: none of the calls used here has an argument that is a pointer it gets to.
            unsafe {
                let done = libc::syscall(call, first, second, third, 0, 0, 0);
                let refused = done == -1 && *libc::__errno_location() == libc::ENOSYS;
                libc::_exit(if applied && (call != libc::SYS_clone3 || refused) { 7 } else { 8 });
            }
        }
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
    }
}

#[test]
fn threads_are_started_and_no_processes() {
    assert!(survived(starter(libc::SYS_clone3, [0; 3])), "as if there were none");
    for flags in [libc::SIGCHLD, libc::CLONE_VM | libc::CLONE_VFORK, libc::CLONE_NEWUSER] {
        assert!(killed(starter(libc::SYS_clone, [flags.into(), 0, 0])), "{flags:#x}");
    }
    for call in [libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_openat] {
        assert!(killed(starter(call, [0; 3])), "system call {call}");
    }
    let allow = libc::PR_SET_DUMPABLE.into();
    assert!(killed(starter(libc::SYS_prctl, [allow, 1, 0])));
}

/// What the thread that starts others does, and these, with the filters on.
#[test]
fn a_confined_thread_starts_confined_threads() {
    if std::env::var(ROLE).is_ok() {
        // As the program does.
        // SAFETY: only sets a number of the allocator's.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        let filters = Filters::compile().unwrap();
        let starter = crate::virtio::starter::Starter::default();
        let threads = starter.threads();
        let (own, disk) = (filters.starter, filters.disk);
        let own = move || own.apply().map_err(std::io::Error::other);
        let disk = move || disk.apply().map_err(std::io::Error::other);
        starter.spawn(Box::new(own), Arc::new(disk)).unwrap();
        let (told, heard) = channel();
        for number in 0..50 {
            let told = told.clone();
            threads.start("disk", Box::new(move || told.send(number).unwrap())).unwrap();
        }
        drop(told);
        assert_eq!(heard.iter().sum::<i32>(), 50 * 49 / 2);
        std::process::exit(0);
    }
    let name = "seccomp::tests::a_confined_thread_starts_confined_threads";
    let arguments = ["--exact", name, "--nocapture"];
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.args(arguments).env(ROLE, "starter").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The role that this process, started by [`each_role_stands_contention_and_shortage`], plays.
const ROLE: &str = "VMM_SECCOMP_TEST_ROLE";

/// What the standard library, the allocator and the locks do when threads get in each other's way and
/// memory comes and goes, with every thread under the filter of its role.
#[test]
fn each_role_stands_contention_and_shortage() {
    if let Ok(role) = std::env::var(ROLE) {
        contend(&role);
        std::process::exit(0);
    }
    let me = std::env::current_exe().unwrap();
    for role in ["main_thread", "vcpu", "io", "network", "disk"] {
        let name = "seccomp::tests::each_role_stands_contention_and_shortage";
        let arguments = ["--exact", name, "--nocapture"];
        let output = Command::new(&me).args(arguments).env(ROLE, role).output().unwrap();
        assert!(output.status.success(), "{role}: {output:?}");
    }
}

/// Threads that send, receive, lock, wait, allocate and end, all of them confined.
fn contend(role: &str) {
    const SENDERS: u64 = 6;
    const ROUNDS: u64 = 2000;
    let filters = Filters::compile().unwrap();
    let filter = match role {
        "main_thread" => filters.main_thread,
        "vcpu" => filters.vcpu,
        "network" => filters.network,
        "disk" => filters.disk,
        _ => filters.io,
    };
    // All of them are there before the first goes on: a confined thread can't start another.
    let together = Arc::new(Barrier::new(SENDERS as usize + 2));
    let confined = |work: Box<dyn FnOnce() -> u64 + Send>| {
        let (filter, together) = (filter.clone(), together.clone());
        std::thread::spawn(move || {
            filter.apply().unwrap();
            together.wait();
            work()
        })
    };
    let (sender, receiver) = channel();
    let (bounded, drain) = sync_channel(2);
    let shared = Arc::new((Mutex::new(0u64), Condvar::new()));
    let mut threads = Vec::new();
    for number in 0..SENDERS {
        let (sender, bounded, shared) = (sender.clone(), bounded.clone(), shared.clone());
        threads.push(confined(Box::new(move || {
            for round in 0..ROUNDS {
                sender.send(round).unwrap();
                bounded.send(round).unwrap();
                *shared.0.lock().unwrap() += 1;
                shared.1.notify_all();
                // From the heap and from mappings of their own, grown and given back; maps need keys.
                let mut block = vec![1u8; 1 << (round % 19)];
                block.resize(block.len() * 3, 2);
                let map = HashMap::from([(number, block)]);
                assert!(map[&number].len() >= 3);
            }
            ROUNDS
        })));
    }
    drop((sender, bounded));
    threads.push(confined(Box::new(move || {
        let first = receiver.iter().count() as u64;
        let (count, changed) = &*shared;
        let missing = |count: &mut u64| *count < first;
        let patience = Duration::from_secs(60);
        let count = changed.wait_timeout_while(count.lock().unwrap(), patience, missing);
        *count.unwrap().0
    })));
    threads.push(confined(Box::new(move || drain.iter().count() as u64)));
    let counts: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (sent, received) = counts.split_at(SENDERS as usize);
    assert_eq!(received, [sent.iter().sum::<u64>(); 2]);
}
