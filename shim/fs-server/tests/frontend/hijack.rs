//! The server as an attacker has it who runs code of his own in it: makes system calls in its name.

use super::Machine;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

/// The length of the instruction `syscall`.
const SYSCALL: u64 = 2;

impl Machine {
    /// Lets the server, which waits for work, open this path.
    pub fn open_as_server(&self, path: &str, flags: i32) -> io::Result<i64> {
        let directory = libc::AT_FDCWD as u64;
        self.call_as_server(libc::SYS_openat, Some(path), |path| {
            [directory, path, flags as u64, 0, 0, 0]
        })
    }

    /// Lets the server make a system call whose arguments may contain the address of a text.
    pub fn call_as_server(
        &self,
        number: i64,
        text: Option<&str>,
        arguments: impl Fn(u64) -> [u64; 6],
    ) -> io::Result<i64> {
        let pid = self.server.id();
        let before = stop_in_poll(pid)?;
        // Below what a function may use beneath its stack pointer.
        let address = before.rsp - 4096;
        let memory = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
        memory.write_all_at(&[text.unwrap_or_default().as_bytes(), b"\0"].concat(), address)?;
        let [rdi, rsi, rdx, r10, r8, r9] = arguments(address);
        // It stands behind the instruction by which it waits; a call that was interrupted is not begun again.
        let rip = before.rip - SYSCALL;
        let call = libc::user_regs_struct {
            rip,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            rax: number as u64,
            orig_rax: u64::MAX,
            ..before
        };
        set_registers(pid, &call)?;
        request(libc::PTRACE_SINGLESTEP, pid, 0)?;
        stopped(pid)?;
        let result = registers(pid)?.rax as i64;
        set_registers(pid, &before)?;
        request(libc::PTRACE_DETACH, pid, 0)?;
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result) }
    }
}

/// Stops the server where it waits for requests: it may still be busy with what it has answered.
fn stop_in_poll(pid: u32) -> io::Result<libc::user_regs_struct> {
    loop {
        request(libc::PTRACE_SEIZE, pid, 0)?;
        request(libc::PTRACE_INTERRUPT, pid, 0)?;
        stopped(pid)?;
        let registers = registers(pid)?;
        if [libc::SYS_poll, libc::SYS_ppoll].contains(&(registers.orig_rax as i64)) {
            return Ok(registers);
        }
        request(libc::PTRACE_DETACH, pid, 0)?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Waits for the tracee to stop; that it ends instead is an error.
fn stopped(pid: u32) -> io::Result<()> {
    let id = WaitId::Pid(Pid::from_raw(pid as i32).unwrap());
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    // Without NOWAIT a stop is told once; an end is left for the machine to be told.
    match waitid(id.clone(), options)? {
        Some(status) if status.exited() || status.killed() || status.dumped() => {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        _ => waitid(id, WaitIdOptions::STOPPED).map(drop).map_err(Into::into),
    }
}

fn request(request: libc::c_uint, pid: u32, data: usize) -> io::Result<()> {
    // SAFETY: these requests take no address in this process but `data`, which is one where they do.
    let result = unsafe { libc::ptrace(request, pid, 0, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn registers(pid: u32) -> io::Result<libc::user_regs_struct> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    request(libc::PTRACE_GETREGS, pid, registers.as_mut_ptr() as usize)?;
    // SAFETY: the kernel has filled it.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(pid: u32, registers: &libc::user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, pid, &raw const *registers as usize)
}
