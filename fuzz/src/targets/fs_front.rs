//! The front of virtio-fs: what the file server answers, for queues and features that a guest chose. Reaches
//! the whole handshake, the return of the rings, and a second start after a reset.

use crate::choices::Choices;
use crate::guest::io_loop;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use vmm::bus::BusDevice;
use vmm::devices::fs::SharedDir;
use vmm::memory::GuestRam;
use vmm::virtio::mmio::{MmioTransport, register};
use vmm::virtio::testing::registers;

/// Its mapping stays until the process ends, so there is one.
static RAM: LazyLock<GuestRam> = LazyLock::new(|| GuestRam::new(4 << 20).expect("memory"));

/// Longer than any worker here takes to let go.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    let device = SharedDir::new("shared", ours.into()).expect("a good tag");
    let (io, _events) = io_loop();
    let handle = io.handle();
    let thread = io.spawn(Box::new(|| Ok(()))).expect("a thread");
    let transport =
        MmioTransport::new(registers(), Box::new(device), RAM.memory().clone(), handle.clone());
    let transport = transport.expect("eventfds");
    let write = |offset, value: u32| transport.write(offset, &value.to_le_bytes());
    let choice = input.u32();
    let queues: [[u16; 4]; 2] = [(); 2].map(|()| [(); 4].map(|()| input.u16()));
    // All that the server ever says; then it is gone, but for reading.
    let _ = theirs.write_all(input.rest());
    theirs.shutdown(Shutdown::Write).expect("a socket");
    for _ in 0..2 {
        for status in [0, 1, 3] {
            write(register::STATUS, status);
        }
        for (half, features) in [(0, choice & 0x3000_0000), (1, 1)] {
            write(register::DRIVER_FEATURES_SEL, half);
            write(register::DRIVER_FEATURES, features);
        }
        write(register::STATUS, 11);
        for (index, [size, table, available, used]) in (0..).zip(queues) {
            write(register::QUEUE_SEL, index);
            write(register::QUEUE_SIZE, size.into());
            write(register::QUEUE_DESC_LOW, u32::from(table) << 8);
            write(register::QUEUE_DRIVER_LOW, u32::from(available) << 8);
            write(register::QUEUE_DEVICE_LOW, u32::from(used) << 8);
            write(register::QUEUE_READY, 1);
        }
        write(register::STATUS, 15);
        transport.pause(PATIENCE).expect("the worker lets go");
        transport.resume();
    }
    transport.pause(PATIENCE).expect("the worker lets go");
    handle.exit();
    thread.join().expect("the thread does not panic").expect("epoll");
}
