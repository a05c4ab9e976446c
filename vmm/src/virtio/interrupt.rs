//! The interrupt of a virtio-mmio device: an irqfd and the bits that say why (virtio 1.3 §4.2.2).

use super::Interrupt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// InterruptStatus bit 0: a used buffer.
pub const USED: u32 = 1;
/// InterruptStatus bit 1: the configuration changed, or the device needs a reset.
pub const CONFIG: u32 = 2;

/// Shared by the transport (vCPU threads) and the worker (I/O thread); no locks.
pub struct IrqLine {
    line: EventFd,
    status: AtomicU32,
    needs_reset: AtomicBool,
    shared: AtomicBool,
    generation: AtomicU32,
}

impl IrqLine {
    /// A line that nothing is connected to yet.
    ///
    /// # Errors
    /// When no more descriptors can be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(EFD_NONBLOCK)?,
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            generation: AtomicU32::new(0),
        })
    }

    /// The eventfd to be made an irqfd; edge-triggered.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        let shared = if self.shared.load(Ordering::Acquire) { USED } else { 0 };
        self.status.load(Ordering::Acquire) | shared
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// ConfigGeneration: changes whenever the configuration space does.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the device needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Forgets everything, at a reset of the device.
    pub fn clear(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.shared.store(false, Ordering::Release);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        // Fails only when 2^64 - 2 interrupts wait already: then one more makes no difference.
        let _ = self.line.write(1);
    }
}

impl Interrupt for IrqLine {
    fn signal_used(&self) {
        self.raise(USED);
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG);
    }

    fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG);
    }

    fn share_used(&self) -> io::Result<EventFd> {
        let line = self.line.try_clone()?;
        self.shared.store(true, Ordering::Release);
        Ok(line)
    }
}
