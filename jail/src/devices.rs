//! Keeping the processes of a cgroup from opening devices, wherever they find a node.
//!
//! Mounts without devices (`nodev`) do it for the mounts that one knows; this holds for those that appear later too.

use crate::error::{JailError, Step, StepResult};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An instruction of the kernel's virtual machine (`struct bpf_insn`).
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// `BPF_DEVCG_ACC_MKNOD`, the kind of access in the high half of `bpf_cgroup_dev_ctx.access_type`.
const MAKE_NODE: i32 = 1;

/// Whether an access is allowed: a node may be made, and nothing else.
const PROGRAM: [Instruction; 6] = [
    // r1 = *(u32 *)(r1 + 0); r1 >>= 16; r0 = 1; if r1 == MAKE_NODE, skip one; r0 = 0; exit
    instruction(0x61, 0x11, 0, 0),
    instruction(0x77, 0x01, 0, 16),
    instruction(0xb7, 0x00, 0, 1),
    instruction(0x15, 0x01, 1, MAKE_NODE),
    instruction(0xb7, 0x00, 0, 0),
    instruction(0x95, 0x00, 0, 0),
];

/// The kernel gives some of its functions to programs under the GPL only; this one calls none.
const LICENCE: &CStr = c"Apache-2.0";

const LOAD: libc::c_int = 5;
const ATTACH: libc::c_int = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Others' programs at the same cgroup, above and below it count as well.
const ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that loading a program takes.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

/// The part of `union bpf_attr` that attaching a program takes.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// From now on the processes of a cgroup (of version 2), given by its directory, can make device nodes and open none.
/// Devices that are open stay so. It ends with the cgroup.
///
/// # Errors
/// The caller lacks `CAP_SYS_ADMIN`, or the kernel was built without `CONFIG_CGROUP_BPF`.
pub fn forbid_devices(cgroup: impl AsFd) -> Result<(), JailError> {
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        instructions: PROGRAM.len() as u32,
        program: PROGRAM.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"no_devices\0\0\0\0\0\0",
        interface: 0,
        expected_attach: CGROUP_DEVICE,
    };
    let program = bpf(LOAD, &load).step(Step::Devices)?;
    // SAFETY: the kernel has just opened it for us.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(ATTACH, &attach).step(Step::Devices).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as the structure has, and what it points to, which is constant.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
