//! The interrupt of a virtio-mmio device, and the registers that change with it (virtio 1.3 §4.2.2).
//!
//! InterruptStatus always has the bit of used buffers: the driver then looks at its queues, which is what the interrupt
//! is for. So it is known without asking this process, and an acknowledgement of that bit means nothing: see
//! [`IrqLine::acknowledged`].

use super::Interrupt;
use super::registers::{RegisterPage, register, status};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// InterruptStatus bit 0: a used buffer.
pub const USED: u32 = 1;
/// InterruptStatus bit 1: the device needs a reset. (No configuration of ours ever changes.)
pub const CONFIG: u32 = 2;

/// Shared by the transport (vCPU threads) and the worker (I/O thread); locked for what is rare.
pub struct IrqLine {
    line: EventFd,
    acknowledged: EventFd,
    page: RegisterPage,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    status: u32,
    needs_reset: bool,
    changed: bool,
}

impl IrqLine {
    /// A line that nothing is connected to yet, of a device with these registers.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn new(page: RegisterPage) -> io::Result<Self> {
        let [line, acknowledged] = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        let irq = Self { line, acknowledged, page, state: Mutex::default() };
        irq.clear();
        Ok(irq)
    }

    /// The eventfd to be made an irqfd; edge-triggered.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// To be made an ioeventfd for acknowledgements of [`USED`] alone, which nobody waits for.
    pub fn acknowledged(&self) -> &EventFd {
        &self.acknowledged
    }

    /// The device's registers.
    pub fn page(&self) -> &RegisterPage {
        &self.page
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        let mut state = self.state();
        state.changed &= bits & CONFIG == 0;
        self.show(&state);
    }

    /// Whether the device needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.state().needs_reset
    }

    /// The Status register, but for the bit that says that it needs a reset.
    pub fn set_status(&self, status: u32) {
        let mut state = self.state();
        state.status = status;
        self.show(&state);
    }

    /// Forgets everything, at a reset of the device.
    pub fn clear(&self) {
        let mut state = self.state();
        *state = State::default();
        self.show(&state);
    }

    fn show(&self, state: &State) {
        let needs_reset = if state.needs_reset { status::NEEDS_RESET } else { 0 };
        self.page.set(register::STATUS, state.status | needs_reset);
        let changed = if state.changed { CONFIG } else { 0 };
        self.page.set(register::INTERRUPT_STATUS, USED | changed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole at all times.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self) {
        // Fails only when 2^64 - 2 interrupts wait already: then one more makes no difference.
        let _ = self.line.write(1);
    }
}

impl Interrupt for IrqLine {
    fn signal_used(&self) {
        self.raise();
    }

    fn signal_needs_reset(&self) {
        {
            let mut state = self.state();
            (state.needs_reset, state.changed) = (true, true);
            self.show(&state);
        }
        self.raise();
    }

    fn share_used(&self) -> io::Result<EventFd> {
        self.line.try_clone()
    }
}
