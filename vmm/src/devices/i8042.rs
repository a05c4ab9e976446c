//! The keyboard controller's command port, as far as Linux needs it to reset the machine.

use crate::bus::BusDevice;
use crate::exit::ExitNotice;
use std::sync::Arc;

/// "Pulse the reset line" (IBM PC/AT).
const COMMAND_RESET: u8 = 0xfe;

/// Port 0x64. It reads as 0, "ready", or `reboot=k` would wait for seconds.
pub struct I8042 {
    exit: Arc<ExitNotice>,
}

impl I8042 {
    /// A controller that ends the machine by `exit`.
    pub fn new(exit: Arc<ExitNotice>) -> Self {
        Self { exit }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&COMMAND_RESET) {
            self.exit.guest_reset();
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
        port.write(0, &[COMMAND_RESET]);
        assert_eq!(exit.reason(), Some(ExitReason::GuestShutdown));
    }
}
