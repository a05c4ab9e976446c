//! What a broken VMM says to the file server: vhost-user requests, good and bad, with descriptors of any kind, and
//! memory that it changes meanwhile. Reaches the library that reads the messages, our device, the mapping of memory and
//! the queues; a map that reaches beyond its file ends the process.

use crate::choices::Choices;
use crate::scratch;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{chdir, chroot};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Bytes of the guest's memory.
const MEMORY: u64 = 0x2_0000;
/// Where the VMM has it.
const VMM: u64 = 0x7f00_0000_0000;
/// Requests of the protocol, and some that there aren't.
const REQUESTS: usize = 48;
/// The version, and that an answer is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

/// Takes one input.
pub fn take(data: &[u8]) {
    let tree = scratch::directory();
    fs::write(tree.path().join("file"), "content").expect("a file");
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(tree.path(), theirs));
        Vmm::new(ours).act(data);
        server.join().expect("no panic");
    });
}

/// On a thread of its own, whose root the tree becomes.
fn serve(tree: &Path, socket: UnixStream) {
    let own_descriptors = file_server::own_descriptors().expect("/proc/self/fd");
    // SAFETY: no memory is unshared, only this thread's root and working directory.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("a root of its own");
    chroot(tree).expect("the tree is a directory");
    chdir("/").expect("a root");
    let files = file_server::open(own_descriptors, file_server::Roots::Guests).expect("a root");
    // An error ends the server, as it may.
    let _ = file_server::serve(socket, files, None);
}

struct Vmm {
    socket: UnixStream,
    memory: File,
    descriptors: Vec<OwnedFd>,
}

impl Vmm {
    fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).expect("a socket");
        // The server may have ended, or not read.
        socket.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
        let memory: File = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a file").into();
        ftruncate(&memory, MEMORY).expect("a size");
        Self { socket, memory, descriptors: Vec::new() }
    }

    fn act(mut self, data: &[u8]) {
        let mut input = Choices::new(data);
        while !input.is_empty() {
            match input.below(8) {
                0 => self.bring_up(input.byte()),
                1 => self.any(&mut input),
                2 => self.one_number(&mut input),
                3 => self.write(&mut input),
                4 => self.notify(),
                5 => self.table(&mut input),
                6 => self.address(&mut input),
                _ => self.raw(&mut input),
            }
            while self.socket.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        }
    }

    /// As a good VMM begins, with one queue.
    fn bring_up(&mut self, queue: u8) {
        let queue = u32::from(queue % 2);
        let event = || {
            let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
            event.expect("an eventfd")
        };
        self.send(SET_FEATURES, &(1u64 << 30 | 1 << 32).to_le_bytes(), &[]);
        self.send(SET_PROTOCOL_FEATURES, &8u64.to_le_bytes(), &[]);
        let region = [1, 0, MEMORY, VMM, 0].map(u64::to_le_bytes).concat();
        let memory = self.memory.try_clone().expect("a descriptor").into();
        self.send(SET_MEM_TABLE, &region, &[memory]);
        self.send(SET_VRING_NUM, &numbers(&[queue, 16]), &[]);
        let at = |offset: u64| (VMM + offset).to_le_bytes();
        let rings = [at(0), at(0x2000), at(0x1000), [0; 8]].concat();
        self.send(SET_VRING_ADDR, &[numbers(&[queue, 0]), rings].concat(), &[]);
        self.send(SET_VRING_BASE, &numbers(&[queue, 0]), &[]);
        let (kick, call) = (event(), event());
        self.descriptors.push(kick.try_clone().expect("a descriptor"));
        self.send(SET_VRING_CALL, &u64::from(queue).to_le_bytes(), &[call]);
        self.send(SET_VRING_KICK, &u64::from(queue).to_le_bytes(), &[kick]);
        self.send(SET_VRING_ENABLE, &numbers(&[queue, 1]), &[]);
    }

    /// Any request with any payload.
    fn any(&mut self, input: &mut Choices<'_>) {
        let request = input.below(REQUESTS) as u32;
        let count = input.below(4);
        let descriptors: Vec<_> = (0..count).map(|_| self.descriptor(input)).collect();
        let len = input.byte().into();
        let payload = input.bytes(len);
        self.send(request, payload, &descriptors);
    }

    /// A request about a queue, or about features.
    fn one_number(&mut self, input: &mut Choices<'_>) {
        let request = input.below(REQUESTS) as u32;
        let (queue, number) = (input.below(4) as u32, input.u32());
        let count = input.below(3);
        let descriptors: Vec<_> = (0..count).map(|_| self.descriptor(input)).collect();
        self.send(request, &numbers(&[queue, number]), &descriptors);
    }

    /// A description of memory.
    fn table(&mut self, input: &mut Choices<'_>) {
        let count = input.below(10) as u64;
        let mut payload = (count | u64::from(input.below(2) as u8) << 32).to_le_bytes().to_vec();
        let mut descriptors = Vec::new();
        for _ in 0..count {
            let guest = u64::from(input.u16()) << 12;
            let size = match input.below(3) {
                0 => MEMORY,
                1 => u64::from(input.u16()) << 8,
                _ => input.u64(),
            };
            let offset = if input.below(4) == 0 { input.u64() } else { 0 };
            for number in [guest, size, VMM + guest, offset] {
                payload.extend(number.to_le_bytes());
            }
            descriptors.push(self.descriptor(input));
        }
        self.send(SET_MEM_TABLE, &payload, &descriptors);
    }

    /// Where a queue's rings are.
    fn address(&mut self, input: &mut Choices<'_>) {
        let mut payload = numbers(&[input.below(3) as u32, input.below(2) as u32]);
        for _ in 0..4 {
            let at = if input.below(4) == 0 { input.u64() } else { VMM + u64::from(input.u32()) };
            payload.extend(at.to_le_bytes());
        }
        self.send(SET_VRING_ADDR, &payload, &[]);
    }

    /// Changes the guest's memory.
    fn write(&mut self, input: &mut Choices<'_>) {
        let at = u64::from(input.u32()) % (MEMORY - 256);
        let len = input.byte().into();
        self.memory.write_all_at(input.bytes(len), at).expect("it is in memory");
    }

    fn notify(&self) {
        for descriptor in &self.descriptors {
            let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
        }
    }

    /// Bytes that may be no message.
    fn raw(&mut self, input: &mut Choices<'_>) {
        let len = input.byte().into();
        let bytes = input.bytes(len).to_vec();
        let _ = self.send_bytes(&bytes, &[]);
    }

    /// A descriptor of some kind; none of them makes the server wait.
    fn descriptor(&mut self, input: &mut Choices<'_>) -> OwnedFd {
        let null = || File::open("/dev/null").expect("a device").into();
        match input.below(6) {
            0 => self.memory.try_clone().expect("a descriptor").into(),
            1 => {
                let flags = rustix::event::EventfdFlags::NONBLOCK;
                let event = rustix::event::eventfd(0, flags).expect("an eventfd");
                self.descriptors.push(event.try_clone().expect("a descriptor"));
                event
            }
            2 => File::open("/").expect("a directory").into(),
            3 => {
                let file: File = memfd_create("short", MemfdFlags::CLOEXEC).expect("a file").into();
                ftruncate(&file, u64::from(input.u16())).expect("a size");
                file.into()
            }
            4 => {
                let (ours, theirs) = UnixStream::pair().expect("a socket pair");
                ours.set_nonblocking(true).expect("a socket");
                theirs.set_nonblocking(true).expect("a socket");
                self.descriptors.push(ours.into());
                theirs.into()
            }
            _ => null(),
        }
    }

    fn send(&mut self, request: u32, payload: &[u8], descriptors: &[OwnedFd]) {
        let header = numbers(&[request, VERSION | NEED_REPLY, payload.len() as u32]);
        let _ = self.send_bytes(&[&header[..], payload].concat(), descriptors);
    }

    fn send_bytes(&self, bytes: &[u8], descriptors: &[OwnedFd]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(10))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
