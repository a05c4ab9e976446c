//! Makes another process do a system call: what a guest that took it over would try.

use anyhow::{Context as _, Result, bail};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::time::Duration;

/// Length of x86-64's `syscall` instruction, bytes.
const SYSCALL_LEN: u64 = 2;

/// How often it is looked whether the process waits in a system call, and how long between.
const TRIES: u32 = 250;
const PAUSE: Duration = Duration::from_millis(20);

/// Rewinds the first thread of `pid`, once it waits in a system call, onto its `syscall` instruction with another
/// number in its place, and lets it go.
pub fn make_system_call(pid: u32, number: i64) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed());
    for _ in 0..TRIES {
        ptrace::attach(pid).context("attach")?;
        let made = replace_call(pid, number);
        // Whatever came of it: a process that is traced ends for nobody but its tracer.
        let detached = ptrace::detach(pid, None).context("detach");
        if made? {
            return detached;
        }
        detached?;
        std::thread::sleep(PAUSE);
    }
    bail!("process {pid} is never in a system call")
}

/// Whether it was in one.
fn replace_call(pid: Pid, number: i64) -> Result<bool> {
    match waitpid(pid, None)? {
        WaitStatus::Stopped(..) => {}
        other => bail!("process {pid} is {other:?} instead of stopped"),
    }
    let mut registers = ptrace::getregs(pid)?;
    if registers.orig_rax == u64::MAX {
        return Ok(false);
    }
    registers.rip -= SYSCALL_LEN;
    registers.rax = number.cast_unsigned();
    // Not a call to be restarted: the kernel must leave the program counter as it is.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers)?;
    Ok(true)
}
