//! virtio-rng's chains. Reaches: filled requests, refused chains, the ends of both rings.

use crate::choices::Choices;
use crate::guest::{Guest, io_loop};
use vmm::devices::rng::Rng;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let (io, _events) = io_loop();
    let mut guest = Guest::new(&mut Rng, io, input.byte() & 1 != 0);
    while !input.is_empty() {
        guest.act(0, &mut input);
    }
    guest.run_device();
}
