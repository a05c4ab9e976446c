//! virtio-blk's chains and requests, on a disk of 64 sectors that may be read-only. Reaches every kind of
//! request down to the file.
#![no_main]

use fuzz::choices::Choices;
use fuzz::guest::{Guest, io_loop};
use fuzz::scratch;
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use vmm::devices::blk::Disk;

fuzz_target!(init: scratch::limit_process(), |data: &[u8]| {
    let mut input = Choices::new(data);
    let path = scratch::file("disk");
    File::create(&path).and_then(|file| file.set_len(64 * 512)).expect("a file");
    let form = input.byte();
    let mut disk = Disk::open(&path, form & 2 != 0, "serial").expect("a disk");
    let (io, _events) = io_loop();
    let mut guest = Guest::new(&mut disk, io, form & 1 != 0);
    while !input.is_empty() {
        guest.act(0, &mut input);
    }
    guest.run_device();
    let len = path.metadata().expect("the file").len();
    assert_eq!(len, 64 * 512, "a guest changed the size of its disk");
});
