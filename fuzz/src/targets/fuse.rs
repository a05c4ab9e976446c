//! The guest's FUSE requests to the file server, good and bad, in chains of good and bad descriptors. Reaches
//! virtiofsd's parser and its operations on files, in a small tree that is the root of the thread that serves.

use crate::choices::Choices;
use crate::scratch;
use file_server::{Files, Memory, Progress, Regions, RequestQueue};
use rustix::process::{chdir, chroot};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 0x4_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x2_0000;
const SIZE: u16 = 64;

/// Descriptor flags (virtio 1.3 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// FUSE's opcodes.
const INIT: u32 = 26;
const OPCODES: usize = 56;
/// Bytes before a request's own.
const HEADER: usize = 40;

/// What is in the tree, and what is not.
const NAMES: [&str; 9] =
    ["container", "rootfs", "mounts", "0", "file", "link", "new", "..", "container/rootfs"];

/// Takes one input.
pub fn take(data: &[u8]) {
    let tree = scratch::directory();
    for directory in ["container/rootfs", "container/mounts/0"] {
        fs::create_dir_all(tree.path().join(directory)).expect("a directory");
        fs::write(tree.path().join(directory).join("file"), "content").expect("a file");
    }
    symlink("/container/rootfs/file", tree.path().join("container/rootfs/link")).expect("a link");
    std::thread::scope(|scope| scope.spawn(|| serve(tree.path(), data)).join().expect("no panic"));
}

/// On a thread of its own, whose root the tree becomes.
fn serve(tree: &Path, data: &[u8]) {
    let own_descriptors = file_server::own_descriptors().expect("/proc/self/fd");
    // SAFETY: no memory is unshared, only this thread's root and working directory.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("a root of its own");
    chroot(tree).expect("the tree is a directory");
    chdir("/").expect("a root");
    // The end of the input says which of the two file systems it is for.
    let files = if data.last().is_some_and(|last| last & 1 == 1) {
        file_server::open_layers(own_descriptors)
    } else {
        file_server::open(own_descriptors, file_server::Roots::Guests)
    };
    let mut guest = Guest::new(files.expect("a root"));
    let mut input = Choices::new(data);
    guest.init();
    while !input.is_empty() {
        guest.act(&mut input);
    }
}

/// A driver and the file server's view of its queue.
struct Guest {
    files: Arc<Files>,
    memory: Memory,
    queue: RequestQueue,
    available: u16,
}

impl Guest {
    fn new(files: Files) -> Self {
        let regions = Regions::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let mut queue = RequestQueue::new(SIZE).expect("a good size");
        queue.ring.set_size(SIZE);
        queue.ring.set_desc_table_address(Some(0), Some(0));
        queue.ring.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.ring.set_used_ring_address(Some(USED as u32), Some(0));
        queue.ring.set_ready(true);
        Self { files: Arc::new(files), memory: Memory::new(regions), queue, available: 0 }
    }

    /// As a good driver begins; every feature is wanted.
    fn init(&mut self) {
        let mut body = [0xff; 64];
        body[..4].copy_from_slice(&7u32.to_le_bytes());
        body[4..8].copy_from_slice(&41u32.to_le_bytes());
        self.request(INIT, 0, 0, &body);
        self.offer(4096, false);
    }

    fn act(&mut self, input: &mut Choices<'_>) {
        match input.below(8) {
            0 => {
                let (index, address, flags, next) =
                    (input.u16(), input.u32(), input.u16(), input.u16());
                self.descriptor(index % SIZE, address.into(), input.u32(), flags, next);
            }
            1 => {
                let at = usize::from(input.u16());
                let len = input.byte().into();
                self.write(at as u64, input.bytes(len));
            }
            _ => self.file_request(input),
        }
    }

    /// One request that is at least a request.
    fn file_request(&mut self, input: &mut Choices<'_>) {
        let opcode = input.below(OPCODES) as u32;
        let node = match input.byte() {
            mark @ 0..64 => u64::from(mark & 15) | u64::from(mark >> 4) << 62,
            _ => input.u64(),
        };
        let form = input.byte();
        let uid = if form & 1 == 0 { 0 } else { 1000 };
        let len = input.byte().into();
        let mut body = input.bytes(len).to_vec();
        for _ in 0..form >> 1 & 3 {
            body.extend(NAMES[input.below(NAMES.len())].as_bytes());
            body.push(0);
        }
        self.request(opcode, node, uid, &body);
        if form & 8 != 0 {
            let len = input.u32();
            self.write(REQUEST, &len.to_le_bytes());
        }
        self.offer(input.u16().into(), form & 16 != 0);
    }

    /// Writes a request to memory.
    fn request(&mut self, opcode: u32, node: u64, uid: u32, body: &[u8]) {
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(u64::from(self.available).to_le_bytes());
        request.extend(node.to_le_bytes());
        for word in [uid, uid, 1, 0] {
            request.extend(word.to_le_bytes());
        }
        request.extend(body);
        self.write(REQUEST, &request);
        self.descriptor(0, REQUEST, request.len() as u32, NEXT, 1);
    }

    /// Offers the request with room for an answer, and has it served. `split`: its header apart.
    fn offer(&mut self, room: u32, split: bool) {
        let body = self.read_length().saturating_sub(HEADER as u32);
        if split {
            self.descriptor(0, REQUEST, HEADER as u32, NEXT, 2);
            self.descriptor(2, REQUEST + HEADER as u64, body, NEXT, 1);
        }
        self.descriptor(1, ANSWER, room, WRITE, 0);
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.write(slot, &0u16.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
        while self.queue.serve(&self.memory, &self.files) == Progress::More {}
    }

    /// The length of the request in the first descriptor.
    fn read_length(&self) -> u32 {
        use vm_memory::GuestAddressSpace;
        self.memory.memory().read_obj(GuestAddress(8)).expect("it is in memory")
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.write(16 * u64::from(index), &raw);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        use vm_memory::GuestAddressSpace;
        self.memory.memory().write_slice(bytes, GuestAddress(at)).expect("it is in memory");
    }
}
