//! What a guest and its VMM are to the file server: memory, two virtqueues, a vhost-user socket.

pub mod fuse;
mod hijack;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process, setrlimit, waitid,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const HIGH_PRIORITY: usize = 0;
pub const REQUESTS: usize = 1;

const MEMORY: u64 = 4 << 20;
const QUEUE_SIZE: u16 = 16;
const QUEUE_AREA: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where requests and answers are put.
pub const REQUEST: u64 = 0x10_0000;
pub const ANSWER: u64 = 0x20_0000;
pub const ANSWER_SIZE: u32 = 0x10_0000 + 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A descriptor of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
    /// Followed by the descriptor with this index.
    pub next: Option<u16>,
}

struct Queue {
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

/// Which of the server's two file systems it is about.
#[derive(Clone, Copy)]
enum Served {
    Everything,
    Layers,
}

/// How long what a server does is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running file server and the machine that it serves.
pub struct Machine {
    pub server: Child,
    frontend: Option<Frontend>,
    /// The server's other socket, at which nothing is said.
    _other: UnixStream,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    /// From exec to the answer to the first message.
    pub start_time: Duration,
    /// How long an answer may take: a whole file system is synced, on machines that do much else.
    pub patience: Duration,
}

impl Machine {
    /// Starts a server for the directory and sets its device up.
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, None, Served::Everything)
    }

    /// The same, to be served as root file systems to which nobody writes.
    pub fn start_for_layers(directory: &Path) -> Self {
        Self::start_with(directory, None, Served::Layers)
    }

    /// The same for a server that may have so many descriptors and can't raise the limit.
    pub fn start_with_files(directory: &Path, files: u64) -> Self {
        Self::start_with(directory, Some(files), Served::Everything)
    }

    fn start_with(directory: &Path, files: Option<u64>, served: Served) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, other_theirs) = UnixStream::pair().unwrap();
        let started = Instant::now();
        let sockets = match served {
            Served::Everything => [theirs, other_theirs],
            Served::Layers => [other_theirs, theirs],
        };
        let server = spawn(directory, sockets.map(OwnedFd::from), files);
        let mut frontend = Frontend::from_stream(ours, 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let start_time = started.elapsed();
        let memory = shared_memory();
        frontend.set_features(features).unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered & VhostUserProtocolFeatures::REPLY_ACK).unwrap();
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let queues = (0..2).map(|index| set_up_queue(&mut frontend, index, &memory)).collect();
        Self {
            server,
            frontend: Some(frontend),
            _other: other,
            memory,
            queues,
            start_time,
            patience: PATIENCE,
        }
    }

    /// Puts a chain in the queue and waits for the server to give it back: the length of the answer.
    pub fn submit(&mut self, queue: usize, chain: &[Descriptor]) -> io::Result<u32> {
        self.make_available(queue, chain);
        self.answered(queue)
    }

    /// Waits for the server to give a chain back: the length of the answer.
    pub fn answered(&mut self, queue: usize) -> io::Result<u32> {
        let base = QUEUE_AREA * queue as u64;
        let state = &mut self.queues[queue];
        // SAFETY: the descriptor is open as long as `state` is borrowed.
        let call = unsafe { BorrowedFd::borrow_raw(state.call.as_raw_fd()) };
        let mut polled = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
        let patience = Timespec { tv_sec: self.patience.as_secs().cast_signed(), tv_nsec: 0 };
        if poll(&mut polled, Some(&patience))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        state.call.read()?;
        let entry = base + USED + 4 + 8 * u64::from(state.used % QUEUE_SIZE);
        state.used = state.used.wrapping_add(1);
        let used: u16 = self.memory.read_obj(GuestAddress(base + USED + 2)).unwrap();
        assert_eq!(used, state.used);
        Ok(self.memory.read_obj(GuestAddress(entry + 4)).unwrap())
    }

    /// Puts a chain in the queue and notifies the server.
    pub fn make_available(&mut self, queue: usize, chain: &[Descriptor]) {
        let base = QUEUE_AREA * queue as u64;
        for (index, descriptor) in chain.iter().enumerate() {
            let at = base + 16 * index as u64;
            let flags = if descriptor.writable { WRITE } else { 0 }
                | if descriptor.next.is_some() { NEXT } else { 0 };
            self.write(at, descriptor.address);
            self.write(at + 8, descriptor.len);
            self.write(at + 12, flags);
            self.write(at + 14, descriptor.next.unwrap_or(0));
        }
        let state = &mut self.queues[queue];
        let slot = base + AVAILABLE + 4 + 2 * u64::from(state.available % QUEUE_SIZE);
        state.available = state.available.wrapping_add(1);
        let available = state.available;
        // "Notify me when the next one is used": the event index lies behind the ring.
        let event = base + AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE);
        let used = state.used;
        self.write(event, used);
        self.write(slot, 0u16);
        self.write(base + AVAILABLE + 2, available);
        self.queues[queue].kick.write(1).unwrap();
    }

    /// Stops the server where it is until it is sent the signal to go on.
    pub fn stop_server(&self) {
        let pid = Pid::from_child(&self.server);
        kill_process(pid, Signal::STOP).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
    }

    /// Takes a queue back from the server: where it goes on.
    pub fn take_back(&mut self, queue: usize) -> u16 {
        self.frontend.as_mut().unwrap().get_vring_base(queue).unwrap().try_into().unwrap()
    }

    /// Gives a queue to the server again.
    pub fn hand_over(&mut self, queue: usize, base: u16) {
        let frontend = self.frontend.as_mut().unwrap();
        hand_over(frontend, queue, &self.memory, &self.queues[queue], base);
    }

    /// Begins with empty rings, as a driver that resets its device.
    pub fn set_up_anew(&mut self, queue: usize) {
        self.write_bytes(QUEUE_AREA * queue as u64, &vec![0; QUEUE_AREA as usize]);
        let (frontend, memory) = (self.frontend.as_mut().unwrap(), &self.memory);
        self.queues[queue] = set_up_queue(frontend, queue, memory);
    }

    /// Announces more requests than a ring can hold.
    pub fn overrun(&mut self, queue: usize) {
        self.write(QUEUE_AREA * queue as u64 + AVAILABLE + 2, self.queues[queue].available + 1000);
        self.queues[queue].kick.write(1).unwrap();
    }

    pub fn write<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn write_bytes(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read_bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Closes the VMM's end of the socket; how the server ended, unless it does not.
    pub fn disconnect(&mut self) -> Option<ExitStatus> {
        self.frontend = None;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.server.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.disconnect().is_none() {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }
}

fn spawn(directory: &Path, sockets: [OwnedFd; 2], files: Option<u64>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-like-fs"));
    command.arg("--shared-dir").arg(directory).arg("--layers-fd=4");
    // Out of the way of each other.
    let sockets = sockets.map(|socket| rustix::io::fcntl_dupfd_cloexec(socket, 16).unwrap());
    // It complains of each broken rule; many tests break them by the hundred.
    command.stderr(Stdio::null());
    let inherit = move || {
        if let Some(files) = files {
            limit_files(files)?;
        }
        (3..).zip(&sockets).try_for_each(|(number, socket)| dup_to(socket.as_fd(), number))
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(inherit) };
    command.spawn().unwrap()
}

/// For a program that is executed next, without the right to raise the limit.
fn limit_files(files: u64) -> io::Result<()> {
    /// The number of `CAP_SYS_RESOURCE`.
    const SYS_RESOURCE: libc::c_ulong = 24;
    let limit = Rlimit { current: Some(files), maximum: Some(files) };
    setrlimit(Resource::Nofile, limit)?;
    // SAFETY: takes numbers.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_RESOURCE, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn dup_to(socket: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: dup2 touches no memory, and whatever had the number is not needed after exec.
    match unsafe { libc::dup2(socket.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn shared_memory() -> GuestMemoryMmap {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, MEMORY).unwrap();
    let offset = FileOffset::new(File::from(file), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, Some(offset))])
        .unwrap()
}

fn set_up_queue(frontend: &mut Frontend, index: usize, memory: &GuestMemoryMmap) -> Queue {
    let queue = Queue {
        kick: EventFd::new(libc::EFD_CLOEXEC).unwrap(),
        call: EventFd::new(libc::EFD_CLOEXEC).unwrap(),
        available: 0,
        used: 0,
    };
    hand_over(frontend, index, memory, &queue, 0);
    queue
}

fn hand_over(
    frontend: &mut Frontend,
    index: usize,
    memory: &GuestMemoryMmap,
    queue: &Queue,
    base: u16,
) {
    let address = |offset| {
        let guest = GuestAddress(QUEUE_AREA * index as u64 + offset);
        memory.get_host_address(guest).unwrap() as u64
    };
    let rings = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: address(0),
        used_ring_addr: address(USED),
        avail_ring_addr: address(AVAILABLE),
        log_addr: None,
    };
    frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
    frontend.set_vring_addr(index, &rings).unwrap();
    frontend.set_vring_base(index, base).unwrap();
    frontend.set_vring_call(index, &queue.call).unwrap();
    frontend.set_vring_kick(index, &queue.kick).unwrap();
    frontend.set_vring_enable(index, true).unwrap();
}
