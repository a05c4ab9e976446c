//! virtio-balloon's chains of reported pages. Reaches: pages given back, reports of several turns, refused chains.

use crate::choices::Choices;
use crate::guest::{Guest, io_loop};
use vmm::devices::balloon::Balloon;

/// The queue of reports.
const REPORTING: usize = 2;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let (io, _events) = io_loop();
    let mut guest = Guest::new(&mut Balloon, io, input.byte() & 1 != 0);
    while !input.is_empty() {
        guest.act(REPORTING, &mut input);
    }
    guest.run_device();
}
