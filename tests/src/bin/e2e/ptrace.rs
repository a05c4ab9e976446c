//! Makes another process do a system call: what a guest that took it over would try.

use anyhow::{Context as _, Result, bail};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Length of x86-64's `syscall` instruction, bytes.
const SYSCALL_LEN: u64 = 2;

/// Rewinds the first thread of `pid`, which waits in a system call, onto its `syscall` instruction
/// with another number in its place, and lets it go.
pub fn make_system_call(pid: u32, number: i64) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed());
    ptrace::attach(pid).context("attach")?;
    match waitpid(pid, None)? {
        WaitStatus::Stopped(..) => {}
        other => bail!("process {pid} is {other:?} instead of stopped"),
    }
    let mut registers = ptrace::getregs(pid)?;
    if registers.orig_rax == u64::MAX {
        bail!("process {pid} is not in a system call");
    }
    registers.rip -= SYSCALL_LEN;
    registers.rax = number.cast_unsigned();
    // Not a call to be restarted: the kernel must leave the program counter as it is.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers)?;
    ptrace::detach(pid, None).context("detach")
}
