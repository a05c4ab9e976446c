//! Requests that take their time: of writes from memory that is not there until it is given.

use super::*;
use crate::events;
use crate::virtio::io_loop::{IoHandle, IoLoop, WorkerId};
use crate::virtio::starter::Starter;
use crate::virtio::testing::{
    NEXT, TestInterrupt, TestQueue, WRITE, activation, in_both_modes, memory, wait_for,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

const PAGE: u64 = 4096;
const QUEUE: u16 = 256;
const PATIENCE: Duration = Duration::from_secs(60);

/// Pages of guest memory that are not there: the kernel waits for them where it copies from them (userfaultfd(2)).
struct Pages {
    faults: OwnedFd,
    host: u64,
}

/// The requests of userfaultfd: `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE`; all take numbers.
mod request {
    nix::ioctl_readwrite_bad!(api, 0xc018_aa3f, [u64; 3]);
    nix::ioctl_readwrite_bad!(register, 0xc020_aa00, [u64; 4]);
    nix::ioctl_readwrite_bad!(zero_page, 0xc020_aa04, [u64; 4]);
}

impl Pages {
    const GUEST: u64 = 0x30_0000;
    const COUNT: u64 = 8;

    fn new(memory: &GuestMemoryMmap) -> Self {
        let host = memory.get_host_address(GuestAddress(Self::GUEST)).unwrap() as u64;
        // SAFETY: a plain system call; nothing else owns the descriptor.
        let faults = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            assert!(fd >= 0, "userfaultfd, for root only: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as i32)
        };
        let fd = faults.as_raw_fd();
        let (mut version, mut range) = ([0xaa, 0, 0], [host, Self::COUNT * PAGE, 1, 0]);
        // SAFETY: arrays as large as the kernel's structures; the range is guest memory.
        unsafe {
            request::api(fd, &raw mut version).unwrap();
            request::register(fd, &raw mut range).unwrap();
        }
        Self { faults, host }
    }

    /// From now on it is there, all zeros.
    fn give(&self, page: u64) {
        let mut argument = [self.host + page * PAGE, PAGE, 0, 0];
        // SAFETY: the page lies in guest memory, of which nothing here holds a reference.
        unsafe { request::zero_page(self.faults.as_raw_fd(), &raw mut argument) }.unwrap();
    }
}

/// A disk with its threads and its driver.
struct Running {
    queue: TestQueue,
    io: IoHandle,
    id: WorkerId,
    disk: Disk,
    memory: GuestMemoryMmap,
    interrupt: Arc<TestInterrupt>,
    _events: events::EventReceiver,
}

impl Running {
    fn new() -> Self {
        let starter = Starter::default();
        let threads = starter.threads();
        starter.spawn(Box::new(|| Ok(())), Arc::new(|| Ok(()))).unwrap();
        let file = super::tests::image();
        let mut disk = Disk::new(vec![(file, 64 * SECTOR)], false, threads.clone()).unwrap();
        let (sender, events) = events::channel().unwrap();
        let mut io_loop = IoLoop::new("disk", sender).unwrap();
        let io = io_loop.handle();
        threads.start("disk", Box::new(move || io_loop.run().unwrap())).unwrap();
        let memory = memory();
        let queue = TestQueue::new(&memory, 0x10_0000, QUEUE);
        let (activation, interrupt) = activation(&memory, &[&queue], 0);
        let id = io.add(disk.activate(activation).unwrap(), interrupt.clone());
        Self { queue, io, id, disk, memory, interrupt, _events: events }
    }

    /// Writes one of [`Pages`] to sector 32; gives the head of the chain. One is asked for once.
    fn write(&mut self, page: u64) -> u16 {
        let mut header = [0; 16];
        (header[0], header[8]) = (1, 32);
        let at = self.queue.buffer(17);
        self.memory.write_slice(&header, GuestAddress(at)).unwrap();
        // Not among those that `read` takes.
        let head = 128 + 3 * page as u16;
        self.queue.descriptor(head, at, 16, NEXT, head + 1);
        self.queue.descriptor(head + 1, Pages::GUEST + page * PAGE, PAGE as u32, NEXT, head + 2);
        self.queue.descriptor(head + 2, at + 16, 1, WRITE, 0);
        self.queue.offer(head);
        head
    }

    /// Waits for what is served next, and well.
    fn served(&mut self) -> u16 {
        let (head, written) = wait_for(|| self.queue.used());
        assert!(written > 0, "it failed");
        head
    }

    /// Reads a sector: nothing else is served before.
    fn read(&mut self) {
        let data = self.queue.send(&[&[0; 16]], &[512, 1]);
        assert!(self.served() < 128, "a write");
        assert_eq!(self.queue.read(data[1], 1), [0]);
    }

    /// Gives queues to the disk anew.
    fn activate(&mut self) {
        self.queue = TestQueue::new(&self.memory, 0x20_0000, QUEUE);
        let (activation, interrupt) = activation(&self.memory, &[&self.queue], 0);
        self.id = self.io.add(self.disk.activate(activation).unwrap(), interrupt);
    }
}

#[test]
fn what_takes_its_time_keeps_nothing_else_waiting() {
    in_both_modes(|| {
        let (mut slow, mut other) = (Running::new(), Running::new());
        let pages = Pages::new(&slow.memory);
        // Three at once, for each of which a thread waits, and the fourth still serves.
        for page in 0..3 {
            slow.write(page);
        }
        for _ in 0..20 {
            slow.read();
        }
        // Not with a fourth; but another disk does.
        slow.write(3);
        other.read();
        assert!(other.io.remove(&other.id, PATIENCE).is_ok());
        // It does not stop, and goes on as if that had not been asked.
        assert!(slow.io.remove(&slow.id, Duration::from_millis(50)).is_err());
        assert!(slow.queue.used().is_none());
        for page in 0..4 {
            pages.give(page);
        }
        for _ in 0..4 {
            assert!(slow.served() >= 128);
        }
        slow.read();
        let waits = slow.write(4);
        slow.read();
        // All that was taken is done before the queue is given back.
        let removed = std::thread::scope(|scope| {
            let remove = scope.spawn(|| slow.io.remove(&slow.id, PATIENCE).map_err(drop));
            pages.give(4);
            remove.join().unwrap()
        });
        let [Some(queue)] = &removed.unwrap()[..] else { panic!("no queue") };
        assert_eq!(queue.queue.next_avail(), queue.queue.next_used());
        assert_eq!(slow.served(), waits);
        // And the next driver finds a disk that works.
        slow.activate();
        let waits = slow.write(5);
        slow.read();
        pages.give(5);
        assert_eq!(slow.served(), waits);
        assert!(slow.io.remove(&slow.id, PATIENCE).is_ok());
        slow.io.exit();
        other.io.exit();
    });
}

#[test]
fn a_bad_chain_stops_the_device_whichever_thread_finds_it() {
    in_both_modes(|| {
        let mut running = Running::new();
        let pages = Pages::new(&running.memory);
        // The loop's thread or another waits; whoever takes the bad one says so.
        running.write(0);
        running.queue.send(&[&[0; 16]], &[]);
        pages.give(0);
        wait_for(|| running.interrupt.needs_reset().then_some(()));
        assert_eq!(running.io.remove(&running.id, PATIENCE).unwrap().len(), 1);
        running.io.exit();
    });
}
