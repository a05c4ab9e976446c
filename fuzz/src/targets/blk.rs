//! virtio-blk's chains and requests, on a disk of 64 sectors that may be read-only, and then of two files. Reaches every
//! kind of request down to the file.

use crate::choices::Choices;
use crate::guest::{Guest, io_loop};
use crate::scratch;
use vmm::devices::blk::Disk;
use vmm::virtio::starter::Starter;

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let file = scratch::disk();
    let form = input.byte();
    let read_only = form & 2 != 0;
    let sizes = if form & 6 == 6 { vec![4097, scratch::DISK - 8192] } else { vec![scratch::DISK] };
    let parts =
        sizes.into_iter().map(|bytes| (file.try_clone().expect("a descriptor"), bytes)).collect();
    let mut disk = Disk::new(parts, read_only, Starter::default().threads()).expect("a disk");
    let (io, _events) = io_loop();
    let mut guest = Guest::new(&mut disk, io, form & 1 != 0);
    while !input.is_empty() {
        guest.act(0, &mut input);
    }
    guest.run_device();
    let len = file.metadata().expect("the file").len();
    assert_eq!(len, scratch::DISK, "a guest changed the size of its disk");
}
