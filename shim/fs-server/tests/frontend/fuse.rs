//! A FUSE client, as far as the tests need one: what the guest's kernel would send.

use super::{ANSWER, ANSWER_SIZE, Descriptor, HIGH_PRIORITY, Machine, REQUEST, REQUESTS};
use std::io;

pub const ROOT: u64 = 1;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const GETLK: u32 = 31;
pub const SETLK: u32 = 32;
pub const SETLKW: u32 = 33;
pub const ACCESS: u32 = 34;
pub const CREATE: u32 = 35;
pub const IOCTL: u32 = 39;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const SYNCFS: u32 = 50;
pub const TMPFILE: u32 = 51;
pub const STATX: u32 = 52;
/// One more than the highest operation.
pub const OPERATIONS: u32 = 53;

/// What the kernel (6.12) offers in INIT: everything.
const INIT_FLAGS: u32 = u32::MAX;

/// Who makes a request.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

pub const GUEST_ROOT: Caller = Caller { uid: 0, gid: 0 };

/// A request body: little-endian numbers and names, one after another.
#[derive(Debug, Clone, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// With the zero at the end.
    pub fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).bytes(&[0])
    }
}

/// A file or directory as LOOKUP describes it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub node: u64,
    pub mode: u32,
    pub uid: u32,
    pub submount: bool,
}

impl Entry {
    fn from_answer(answer: &[u8]) -> Self {
        // EntryOut: 40 bytes, then the attributes.
        Self {
            node: u64_at(answer, 0),
            mode: u32_at(answer, 40 + 60),
            uid: u32_at(answer, 40 + 68),
            submount: u32_at(answer, 40 + 84) & 1 != 0,
        }
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The chain of an ordinary request of `len` bytes.
pub fn chain(len: usize) -> [Descriptor; 2] {
    [
        Descriptor { address: REQUEST, len: len as u32, writable: false, next: Some(1) },
        Descriptor { address: ANSWER, len: ANSWER_SIZE, writable: true, next: None },
    ]
}

pub fn header(operation: u32, node: u64, caller: Caller, body: usize) -> Vec<u8> {
    Body::new()
        .u32(40 + body as u32)
        .u32(operation)
        .u64(77)
        .u64(node)
        .u32(caller.uid)
        .u32(caller.gid)
        .u32(1)
        .u32(0)
        .0
}

impl Machine {
    /// Sends a request and returns what follows the header of the answer.
    pub fn call_as(
        &mut self,
        caller: Caller,
        operation: u32,
        node: u64,
        body: &Body,
    ) -> io::Result<Vec<u8>> {
        self.call_on(REQUESTS, caller, operation, node, body)
    }

    pub fn call(&mut self, operation: u32, node: u64, body: &Body) -> io::Result<Vec<u8>> {
        self.call_as(GUEST_ROOT, operation, node, body)
    }

    pub fn call_on(
        &mut self,
        queue: usize,
        caller: Caller,
        operation: u32,
        node: u64,
        body: &Body,
    ) -> io::Result<Vec<u8>> {
        let mut request = header(operation, node, caller, body.0.len());
        request.extend(&body.0);
        self.write_bytes(REQUEST, &request);
        let len = self.submit(queue, &chain(request.len()))?;
        let answer = self.read_bytes(ANSWER, len as usize);
        assert_eq!(u32_at(&answer, 0), len, "length of the answer to operation {operation}");
        assert_eq!(u64_at(&answer, 8), 77, "the answer is to another request");
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[16..].to_vec()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// The first request of all.
    pub fn init(&mut self) -> Vec<u8> {
        let body =
            Body::new().u32(7).u32(38).u32(1 << 20).u32(INIT_FLAGS).u32(u32::MAX).bytes(&[0; 44]);
        self.call(INIT, 0, &body).unwrap()
    }

    /// Waits until the server has seen all that was notified before: it looks at this queue first.
    pub fn settle(&mut self) {
        let getattr = Body::new().u32(0).u32(0).u64(0);
        for _ in 0..2 {
            self.call_on(HIGH_PRIORITY, GUEST_ROOT, GETATTR, ROOT, &getattr).unwrap();
        }
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> io::Result<Entry> {
        let entry = Entry::from_answer(&self.call(LOOKUP, parent, &Body::new().name(name))?);
        // So Linux understands an answer that there is none, and how long that is true.
        if entry.node == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(entry) }
    }

    /// Gives up what one look-up has found; there is no answer.
    pub fn forget(&mut self, node: u64) {
        let body = Body::new().u64(1);
        let mut request = header(FORGET, node, GUEST_ROOT, body.0.len());
        request.extend(&body.0);
        self.write_bytes(REQUEST, &request);
        self.submit(HIGH_PRIORITY, &chain(request.len())).unwrap();
    }

    /// Opens a file: its handle.
    pub fn open(&mut self, node: u64, flags: i32) -> io::Result<u64> {
        Ok(u64_at(&self.call(OPEN, node, &Body::new().u32(flags as u32).u32(0))?, 0))
    }

    /// Makes a file: its node and handle.
    pub fn create(&mut self, caller: Caller, parent: u64, name: &str) -> io::Result<(Entry, u64)> {
        let body = Body::new().u32(libc::O_RDWR as u32).u32(0o644).u32(0).u32(0).name(name);
        let answer = self.call_as(caller, CREATE, parent, &body)?;
        Ok((Entry::from_answer(&answer), u64_at(&answer, 128)))
    }

    pub fn read(&mut self, node: u64, handle: u64, size: u32) -> io::Result<Vec<u8>> {
        let body = Body::new().u64(handle).u64(0).u32(size).u32(0).u64(0).u32(0).u32(0);
        self.call(READ, node, &body)
    }

    pub fn write_file(
        &mut self,
        node: u64,
        handle: u64,
        flags: u32,
        data: &[u8],
    ) -> io::Result<u32> {
        let body = Body::new().u64(handle).u64(0).u32(data.len() as u32).u32(flags);
        let body = body.u64(0).u32(0).u32(0).bytes(data);
        Ok(u32_at(&self.call(WRITE, node, &body)?, 0))
    }

    /// Looks up, opens and reads.
    pub fn read_path(&mut self, parent: u64, name: &str) -> io::Result<Vec<u8>> {
        let entry = self.lookup(parent, name)?;
        let handle = self.open(entry.node, libc::O_RDONLY)?;
        self.read(entry.node, handle, 4096)
    }
}
