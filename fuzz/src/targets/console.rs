//! The serial console: any access to its registers, and the log of what is printed. Checks that the log stays
//! bounded and printable.

use crate::choices::Choices;
use crate::scratch;
use std::sync::Arc;
use vmm::bus::BusDevice;
use vmm::devices::console;
use vmm::devices::serial::SerialPort;
use vmm::exit::ExitNotice;

const LONGEST_LOG: usize = 1 << 20;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let path = scratch::file("console");
    let exit = Arc::new(ExitNotice::new().expect("an eventfd"));
    let (writer, mut log) = console::open(Some(&path), exit).expect("a log");
    let port = SerialPort::new(writer).expect("an eventfd");
    let mut printed = 0usize;
    while !input.is_empty() {
        match input.below(5) {
            0 => {
                let offset = u64::from(input.byte() % 8);
                let len = 1 + input.below(8);
                port.write(offset, input.bytes(len));
            }
            1 => {
                let offset = u64::from(input.byte() % 8);
                port.read(offset, &mut vec![0; 1 + input.below(8)]);
            }
            2 => {
                let len = input.below(256);
                port.write(0, input.bytes(len));
            }
            // Much of the same: escaped, it is four times as long and more than the log holds.
            3 if printed < LONGEST_LOG / 3 => {
                let (byte, len) = (input.byte(), usize::from(input.u16()));
                port.write(0, &vec![byte; len]);
                printed += len;
            }
            _ => log.drain(),
        }
    }
    log.drain();
    let text = std::fs::read(&path).expect("the log");
    assert!(text.len() <= LONGEST_LOG, "a log of {} bytes", text.len());
    let printable = |b: &u8| matches!(b, b'\n' | b'\t' | b' '..=b'~');
    assert!(text.iter().all(printable), "the log has control characters");
}
