//! vCPUs: one thread each, a state machine of three states around `KVM_RUN`.
//!
//! ```text
//!   start ──▶ Paused ──open──▶ Running ──reset, fault──▶ Ended
//!               ▲                 │
//!               └──close + kick───┘
//! ```
//!
//! A kick is a signal whose handler sets `immediate_exit` of the thread's own vCPU: whether it
//! arrives inside `KVM_RUN` or just before, the call returns `EINTR`, and the thread looks at the
//! [`Gate`]. Threads look at the gate at no other time.

mod fault;
mod gate;
mod kick;

pub use gate::{Gate, StuckVcpu};

use crate::bus::Bus;
use crate::counters::{VcpuCounters, count};
use crate::exit::ExitNotice;
use kvm_ioctls::{VcpuExit, VcpuFd};
use protocol::control::ExitReason;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What a vCPU's exits lead to.
#[derive(Clone)]
pub struct Surroundings {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped devices.
    pub mmio: Arc<Bus>,
    /// How the machine ends.
    pub exit: Arc<ExitNotice>,
    /// When vCPUs may run.
    pub gate: Arc<Gate>,
}

/// A vCPU, whether its thread runs or not.
pub struct Vcpu {
    id: usize,
    /// Locked by the thread while the vCPU runs, free while it is paused.
    fd: Arc<Mutex<VcpuFd>>,
    counters: Arc<VcpuCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// A vCPU ready to run.
    pub fn new(id: usize, fd: VcpuFd) -> Self {
        let (fd, counters) = (Arc::new(Mutex::new(fd)), Arc::default());
        Self { id, fd, counters, thread: None }
    }

    /// Starts its thread, which calls `confine` and then waits for the gate.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn spawn(
        &mut self,
        surroundings: Surroundings,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (id, fd, counters) = (self.id, self.fd.clone(), self.counters.clone());
        let run = move || {
            let exit = surroundings.exit.clone();
            let _leaving = Leaving(&surroundings);
            if let Err(e) = confine() {
                exit.end(ExitReason::Internal(format!("a vCPU thread can't be confined: {e}")));
                return;
            }
            let thread = VcpuThread { id, fd: &fd, counters: &counters, around: &surroundings };
            exit.end(thread.run());
        };
        kick::install_handler();
        let name = format!("vcpu{}", self.id);
        self.thread = Some(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Makes its thread look at the gate.
    pub fn kick(&self) {
        if let Some(thread) = &self.thread {
            kick::send(thread);
        }
    }

    /// What it did so far.
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.counters.list(self.id)
    }
}

fn lock(fd: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    fd.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of a vCPU's thread, however it comes: nobody waits for it any more. A panic, where panics unwind (tests,
/// debug builds), ends the machine.
struct Leaving<'a>(&'a Surroundings);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.exit.end(ExitReason::Internal("a vCPU thread panicked".into()));
        }
        self.0.gate.leave();
    }
}

/// Where the thread is.
enum State<'a> {
    Paused,
    Running(MutexGuard<'a, VcpuFd>),
    Ended(ExitReason),
}

struct VcpuThread<'a> {
    id: usize,
    fd: &'a Mutex<VcpuFd>,
    counters: &'a VcpuCounters,
    around: &'a Surroundings,
}

impl<'a> VcpuThread<'a> {
    fn run(&self) -> ExitReason {
        let _registered = kick::Registration::new(&mut lock(self.fd));
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Paused => {
                    self.around.gate.wait(self.id);
                    State::Running(lock(self.fd))
                }
                State::Running(vcpu) => self.run_until_kicked(vcpu),
                State::Ended(reason) => return reason,
            }
        }
    }

    fn run_until_kicked(&self, mut vcpu: MutexGuard<'a, VcpuFd>) -> State<'a> {
        loop {
            match handle_exit(vcpu.run(), self.around, self.counters) {
                Next::Enter => {}
                Next::LookAtGate => {
                    // Before the gate is looked at: a later kick must set it again.
                    vcpu.set_kvm_immediate_exit(0);
                    if !self.around.gate.lets_through(self.id) {
                        return State::Paused;
                    }
                }
                Next::End(reason) => return State::Ended(reason),
                Next::Fault(what) => {
                    let details = fault::describe(&mut vcpu);
                    return State::Ended(ExitReason::Internal(format!("{what} ({details})")));
                }
            }
        }
    }
}

/// What to do after an exit.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Enter,
    LookAtGate,
    End(ExitReason),
    /// The vCPU can't go on.
    Fault(String),
}

/// Serves one exit.
fn handle_exit(
    exit: Result<VcpuExit<'_>, kvm_ioctls::Error>,
    around: &Surroundings,
    counters: &VcpuCounters,
) -> Next {
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            count(&counters.port_reads);
            let answered = around.ports.read(port.into(), data);
            answer_with_ones(answered, data, counters);
            Next::Enter
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            count(&counters.port_writes);
            if !around.ports.write(port.into(), data) {
                count(&counters.unanswered);
            }
            // A reset is not the end of this instruction only: the guest must not run on.
            around.exit.reason().map_or(Next::Enter, Next::End)
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(&counters.mmio_reads);
            let answered = around.mmio.read(address, data);
            answer_with_ones(answered, data, counters);
            Next::Enter
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(&counters.mmio_writes);
            if !around.mmio.write(address, data) {
                count(&counters.unanswered);
            }
            Next::Enter
        }
        Ok(VcpuExit::Intr) => interrupted(counters),
        Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => interrupted(counters),
        Ok(VcpuExit::Shutdown) => Next::End(ExitReason::TripleFault),
        Ok(other) => {
            count(&counters.other);
            Next::Fault(format!("KVM can't run the guest on: {other:?}"))
        }
        Err(e) => Next::Fault(format!("KVM can't run the guest on: {e}")),
    }
}

fn interrupted(counters: &VcpuCounters) -> Next {
    count(&counters.interrupted);
    Next::LookAtGate
}

/// Where no device answers, a PC's bus reads as ones.
fn answer_with_ones(answered: bool, data: &mut [u8], counters: &VcpuCounters) {
    if !answered {
        count(&counters.unanswered);
        data.fill(0xff);
    }
}

#[cfg(test)]
mod tests;
