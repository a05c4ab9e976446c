//! COM1: a 16550A whose output is the guest's console. It has no input.

use super::console::ConsoleInput;
use crate::bus::BusDevice;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The interrupt line, an irqfd.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The device.
pub struct SerialPort {
    uart: Mutex<Serial<Irq, NoEvents, ConsoleInput>>,
    irq: EventFd,
}

impl SerialPort {
    /// A port that prints to `output`.
    ///
    /// # Errors
    /// If there is no eventfd to be had.
    pub fn new(output: ConsoleInput) -> io::Result<Self> {
        let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let uart = Mutex::new(Serial::new(Irq(irq.try_clone()?), output));
        Ok(Self { uart, irq })
    }

    /// To be made an irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    fn uart(&self) -> MutexGuard<'_, Serial<Irq, NoEvents, ConsoleInput>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart();
        for byte in data {
            *byte = uart.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.uart();
        for &byte in data {
            // The output never fails, and an interrupt that is not delivered is already pending.
            let _ = uart.write(offset as u8, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console;
    use crate::exit::ExitNotice;
    use std::sync::Arc;

    #[test]
    fn output_raises_the_interrupt_that_the_driver_enabled() {
        let exit = Arc::new(ExitNotice::new().unwrap());
        let (input, _log) = console::open(None, exit).unwrap();
        let port = SerialPort::new(input).unwrap();
        port.write(0, b"a");
        assert!(port.irq().read().is_err(), "not enabled");
        port.write(1, &[2]);
        port.write(0, b"b");
        assert!(port.irq().read().is_ok());
    }

    #[test]
    fn any_access_is_harmless() {
        let exit = Arc::new(ExitNotice::new().unwrap());
        let (input, _log) = console::open(None, exit).unwrap();
        let port = SerialPort::new(input).unwrap();
        for offset in 0..8 {
            for value in 0..=255 {
                port.write(offset, &[value; 8]);
                port.read(offset, &mut [0; 8]);
            }
        }
    }
}
