//! virtio-blk's chains and requests, on a disk of 64 sectors that may be read-only, and then of two files. Reaches every
//! kind of request down to the file.
#![no_main]

use fuzz::choices::Choices;
use fuzz::guest::{Guest, io_loop};
use fuzz::scratch;
use libfuzzer_sys::fuzz_target;
use vmm::devices::blk::Disk;
use vmm::virtio::starter::Starter;

fuzz_target!(init: scratch::limit_process(), |data: &[u8]| {
    let mut input = Choices::new(data);
    let file = scratch::disk();
    let form = input.byte();
    let read_only = form & 2 != 0;
    let sizes = if form & 6 == 6 { vec![4097, scratch::DISK - 8192] } else { vec![scratch::DISK] };
    let parts = sizes.into_iter().map(|bytes| (file.try_clone().expect("a descriptor"), bytes)).collect();
    let mut disk = Disk::new(parts, read_only, Starter::default().threads()).expect("a disk");
    let (io, _events) = io_loop();
    let mut guest = Guest::new(&mut disk, io, form & 1 != 0);
    while !input.is_empty() {
        guest.act(0, &mut input);
    }
    guest.run_device();
    let len = file.metadata().expect("the file").len();
    assert_eq!(len, scratch::DISK, "a guest changed the size of its disk");
});
