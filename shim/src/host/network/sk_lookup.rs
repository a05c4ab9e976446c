//! A program in a network namespace that gives connections to an address, whatever their port, to one listener:
//! `BPF_PROG_TYPE_SK_LOOKUP`, <https://docs.kernel.org/bpf/prog_sk_lookup.html>. Needs Linux 5.9.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Commands of bpf(2), and the kinds of what they make.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;

// Of `struct bpf_sk_lookup`: where its words are. Addresses are as the network has them.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

// What the program calls.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// What the program answers: go on, with the socket that it has assigned or without.
const SK_PASS: i32 = 1;

/// Has TCP connections to `address` in the network namespace go to `listener`, until what is returned is dropped. Who
/// accepts one sees the port that was meant as its local address.
///
/// # Errors
/// The system's, with what it was asked for.
pub fn redirect(
    namespace: BorrowedFd<'_>,
    listener: &TcpListener,
    address: IpAddr,
) -> io::Result<OwnedFd> {
    let mut map = Map { kind: MAP_TYPE_SOCKMAP, key: 4, value: 4, entries: 1 };
    let map = made(MAP_CREATE, &mut map, "make a map of sockets")?;
    let (key, value) = (0_u32, number(listener));
    let (key, value) = ((&raw const key) as u64, (&raw const value) as u64);
    let mut entry = Entry { map: number(&map), reserved: 0, key, value, flags: 0 };
    call(MAP_UPDATE_ELEM, &mut entry, "put a listener into it")?;
    let instructions = program(address, map.as_raw_fd());
    let mut load = Load {
        kind: PROG_TYPE_SK_LOOKUP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        kernel: 0,
        flags: 0,
        name: *b"kata_localhost\0\0",
        interface: 0,
        attach_type: ATTACH_TYPE_SK_LOOKUP,
    };
    let program = made(PROG_LOAD, &mut load, "load a program")?;
    let (program, namespace) = (number(&program), number(&namespace));
    let mut link = Link { program, namespace, attach_type: ATTACH_TYPE_SK_LOOKUP, flags: 0 };
    made(LINK_CREATE, &mut link, "attach it")
}

/// `union bpf_attr`, as each command has it.
trait Attributes {}

#[repr(C)]
struct Map {
    kind: u32,
    /// Bytes.
    key: u32,
    value: u32,
    entries: u32,
}

#[repr(C)]
struct Entry {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    namespace: u32,
    attach_type: u32,
    flags: u32,
}

impl Attributes for Map {}
impl Attributes for Entry {}
impl Attributes for Load {}
impl Attributes for Link {}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn call<A: Attributes>(command: libc::c_int, attributes: &mut A, what: &str) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, in the kernel's layout and of that size; what they point to
    // lives in the caller for the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("{what}: {error}")));
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// As [`call`], of a command that gives a descriptor.
fn made<A: Attributes>(
    command: libc::c_int,
    attributes: &mut A,
    what: &str,
) -> io::Result<OwnedFd> {
    let fd = call(command, attributes, what)?;
    // SAFETY: the kernel has just made it for this process; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unless all of it is so, the connection is left as it was: `protocol` is TCP, `family` and the words of the address
/// are these. Then the socket in the map gets it.
fn program(address: IpAddr, map: i32) -> Vec<u64> {
    // Registers (RFC 9669): result, arguments, kept over calls, frame.
    const R0: u8 = 0;
    const R1: u8 = 1;
    const R2: u8 = 2;
    const R3: u8 = 3;
    const CONTEXT: u8 = 6;
    const SOCKET: u8 = 7;
    const FRAME: u8 = 10;
    let word = |bytes: [u8; 4]| i32::from_ne_bytes(bytes);
    let (family, words) = match address {
        IpAddr::V4(address) => (libc::AF_INET, vec![(LOCAL_IP4, word(address.octets()))]),
        IpAddr::V6(address) => {
            let words = address.octets();
            let words = words.chunks_exact(4).map(|w| word([w[0], w[1], w[2], w[3]]));
            (libc::AF_INET6, (LOCAL_IP6..).step_by(4).zip(words).collect())
        }
    };
    let mut code = vec![copy(CONTEXT, R1)];
    let mut to_end = Vec::new();
    for (field, value) in [(PROTOCOL, libc::IPPROTO_TCP), (FAMILY, family)].into_iter().chain(words)
    {
        code.push(load_word(R2, CONTEXT, field));
        to_end.push(code.len());
        code.push(jump_if_not(R2, value));
    }
    code.push(store_word(FRAME, -4, 0));
    code.extend(map_of(R1, map));
    code.extend([copy(R2, FRAME), add(R2, -4), call_helper(MAP_LOOKUP_ELEM)]);
    to_end.push(code.len());
    code.push(jump_if_zero(R0));
    code.extend([copy(SOCKET, R0), copy(R1, CONTEXT), copy(R2, SOCKET), set(R3, 0)]);
    code.extend([call_helper(SK_ASSIGN), copy(R1, SOCKET), call_helper(SK_RELEASE)]);
    let end = code.len();
    code.extend([set(R0, SK_PASS), exit()]);
    for at in to_end {
        // From the instruction after the jump.
        code[at] |= ((end - at - 1) as u64) << 16;
    }
    code
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [value, offset] = [u64::from(value.cast_unsigned()), u64::from(offset.cast_unsigned())];
    u64::from(code) | u64::from(to | from << 4) << 8 | offset << 16 | value << 32
}

fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

fn set(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}

fn add(to: u8, value: i32) -> u64 {
    instruction(0x07, to, 0, 0, value)
}

fn load_word(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}

fn store_word(to: u8, offset: i16, value: i32) -> u64 {
    instruction(0x62, to, 0, offset, value)
}

/// Of the word that is in the register's lower half.
fn jump_if_not(register: u8, value: i32) -> u64 {
    instruction(0x56, register, 0, 0, value)
}

fn jump_if_zero(register: u8) -> u64 {
    instruction(0x15, register, 0, 0, 0)
}

fn map_of(to: u8, map: i32) -> [u64; 2] {
    [instruction(0x18, to, 1, 0, map), 0]
}

fn call_helper(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

fn exit() -> u64 {
    instruction(0x95, 0, 0, 0, 0)
}
