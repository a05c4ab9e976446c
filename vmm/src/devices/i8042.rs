//! The keyboard controller's command port, as far as Linux needs it to reset the machine.

use crate::bus::BusDevice;
use crate::exit::ExitNotice;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use vm_superio::{I8042Device, Trigger};

/// The command port's place among the controller's ports, which begin at 0x60.
const COMMAND: u8 = 4;

/// The reset line.
struct Reset(Arc<ExitNotice>);

impl Trigger for Reset {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.guest_reset();
        Ok(())
    }
}

/// Port 0x64. It reads as 0, "ready", or `reboot=k` would wait for seconds.
pub struct I8042(Mutex<I8042Device<Reset>>);

impl I8042 {
    /// A controller that ends the machine by `exit`.
    pub fn new(exit: Arc<ExitNotice>) -> Self {
        Self(Mutex::new(I8042Device::new(Reset(exit))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut controller = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(controller.read(COMMAND));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&command) = data.first() {
            let mut controller = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = controller.write(COMMAND, command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::control::ExitReason;

    #[test]
    fn only_the_reset_command_ends_the_machine() {
        let exit = Arc::new(ExitNotice::new().unwrap());
        let port = I8042::new(exit.clone());
        let mut data = [0xff];
        port.read(0, &mut data);
        assert_eq!(data, [0]);
        port.write(0, &[0xd1]);
        assert_eq!(exit.reason(), None);
        port.write(0, &[0xfe]);
        assert_eq!(exit.reason(), Some(ExitReason::GuestShutdown));
    }
}
