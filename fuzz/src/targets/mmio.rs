//! The registers of virtio-mmio before the entropy device, vsock, or a slot, a disk in it or a network interface. Reaches the whole
//! initialisation, resets, pauses and another device in its place.

use crate::choices::Choices;
use crate::guest::io_loop;
use crate::scratch;
use vm_memory::{Bytes, GuestAddress};
use vmm::bus::BusDevice;
use vmm::devices::blk::Disk;
use vmm::devices::net::Net;
use vmm::devices::rng::Rng;
use vmm::devices::slots::EmptySlot;
use vmm::devices::vsock::Vsock;
use vmm::events::channel;
use vmm::virtio::VirtioDevice;
use vmm::virtio::mmio::{MmioTransport, register};
use vmm::virtio::starter::Starter;
use vmm::virtio::testing::registers;
use vmm::virtio::testing::{self, MEMORY};

/// The steps of a good driver's initialisation.
const STATUS: [u32; 4] = [1, 3, 11, 15];
/// Low and high halves of a queue's addresses.
const ADDRESSES: [u64; 3] =
    [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW];

/// Longer than any worker here takes to let go.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Takes one input.
pub fn take(data: &[u8]) {
    let mut input = Choices::new(data);
    let memory = testing::memory();
    let kind = input.byte();
    let (io, _events) = io_loop();
    let handle = io.handle();
    let thread = io.spawn(Box::new(|| Ok(()))).expect("a thread");
    let transport =
        MmioTransport::new(registers(), device(kind, 0), memory.clone(), handle.clone())
            .expect("eventfds");
    let write = |offset, value: u32| transport.write(offset, &value.to_le_bytes());
    while !input.is_empty() {
        match input.below(8) {
            0 => write(u64::from(input.byte()) * 4, input.u32()),
            1 => {
                let (offset, len) = (u64::from(input.u16() % 4096), 1 + input.below(8));
                transport.write(offset, input.bytes(len));
            }
            2 => {
                let (offset, len) = (u64::from(input.u16() % 4096), 1 + input.below(8));
                transport.read(offset, &mut vec![0; len]);
            }
            3 => write(register::STATUS, STATUS[input.below(4)]),
            4 => {
                write(register::QUEUE_SEL, u32::from(input.byte() % 4));
                write(register::QUEUE_SIZE, input.u16().into());
                for offset in ADDRESSES {
                    write(offset, u32::from(input.u16()) << 8);
                }
                write(register::QUEUE_READY, 1);
            }
            5 => {
                let at = u64::from(input.u32()) % MEMORY;
                let len = input.below(64).min((MEMORY - at) as usize);
                memory.write_slice(input.bytes(len), GuestAddress(at)).expect("it is in memory");
            }
            6 => {
                let other = device(kind, input.byte());
                transport.replace(other, handle.clone()).expect("the worker lets go");
            }
            _ => {
                transport.pause(PATIENCE).expect("the worker lets go");
                transport.resume();
            }
        }
    }
    transport.pause(PATIENCE).expect("the worker lets go");
    handle.exit();
    thread.join().expect("the thread does not panic").expect("epoll");
}

/// One of a kind, among which are those that can be in a slot.
fn device(kind: u8, which: u8) -> Box<dyn VirtioDevice> {
    match kind % 3 {
        0 => Box::new(Rng),
        1 => match which % 3 {
            0 => Box::new(EmptySlot),
            1 => Box::new(
                Disk::new(
                    vec![(scratch::disk(), scratch::DISK)],
                    false,
                    Starter::default().threads(),
                )
                .expect("a disk"),
            ),
            _ => Box::new(Net::new(scratch::disk(), [2; 6], 1500).expect("an interface")),
        },
        _ => {
            let (sender, _events) = channel().expect("an eventfd");
            Box::new(Vsock::new(3, vec![1026], sender).expect("eventfds").0)
        }
    }
}
