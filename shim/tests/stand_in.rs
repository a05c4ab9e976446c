//! The process that stands for a container: what it has, and when it ends.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn start() -> Child {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kata-like-stand-in"));
    program.arg("1879048199").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "run it as root");
    child
}

/// Its end, which must come by itself; one that lives on is killed.
fn end(mut child: Child) -> ExitStatus {
    let late = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > late {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it lives on");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

#[test]
fn it_has_no_descriptor_no_privilege_no_file_and_ends_by_sigkill_alone() {
    let mut child = start();
    let pid = child.id();
    assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
    let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
    assert_eq!(network(&pid.to_string()), network("self"));
    let status = status(pid);
    let all = format!("\t{0}\t{0}\t{0}\t{0}", 1_879_048_199);
    for line in ["Uid:", "Gid:"].map(|name| format!("{name}{all}")) {
        assert!(status.contains(&line), "no {line:?}: {status}");
    }
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "no {line:?}: {status}");
    }
    for line in ["Groups:\t \n", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"] {
        assert!(status.contains(line), "no {line:?}: {status}");
    }
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
        // SAFETY: two integers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid.cast_signed(), signal) }, 0);
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    assert_eq!(end(child).signal(), Some(libc::SIGKILL));
}

#[test]
fn it_ends_with_the_thread_that_started_it() {
    let child = std::thread::spawn(|| {
        use std::os::unix::process::CommandExt as _;
        let mut program = Command::new(env!("CARGO_BIN_EXE_kata-like-stand-in"));
        program.arg("1879048200").stderr(Stdio::piped());
        // SAFETY: the call is one that may be made after a fork.
        unsafe {
            program.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::SIGKILL)?))
        };
        let mut child = program.spawn().unwrap();
        child.stderr.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        child
    })
    .join()
    .unwrap();
    assert_eq!(end(child).signal(), Some(libc::SIGKILL));
}

#[test]
fn what_is_wrong_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_kata-like-stand-in")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("which uid"), "{output:?}");
}
