//! Which devices a container may use: in cgroup version 2 a BPF program at its cgroup says so.
//!
//! The rules are those of `linux.resources.devices`, then the devices that every container has. For each
//! kind of access the last rule that names the device decides; what none names is refused.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What every container may use, as runc has it: type, major, minor, access (`*`: any).
const FOR_ALL: [(u32, Option<u32>, Option<u32>, u32); 10] = [
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHARACTER, Some(1), Some(3), ANY), // null
    (CHARACTER, Some(1), Some(5), ANY), // zero
    (CHARACTER, Some(1), Some(7), ANY), // full
    (CHARACTER, Some(1), Some(8), ANY), // random
    (CHARACTER, Some(1), Some(9), ANY), // urandom
    (CHARACTER, Some(5), Some(0), ANY), // tty
    (CHARACTER, Some(5), Some(2), ANY), // ptmx
    (CHARACTER, Some(136), None, ANY),  // pts
];

/// `BPF_DEVCG_DEV_…`.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// `BPF_DEVCG_ACC_…`.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY: u32 = MKNOD | READ | WRITE;

/// More would not fit into one program that the kernel takes.
const MAX_RULES: usize = 4096;

/// One rule; `None`: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// Attaches the rules to the cgroup in that directory.
///
/// # Errors
/// There are too many, or the kernel refuses.
pub fn confine(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    if rules.len() > MAX_RULES {
        return Err(io::Error::other(format!("more than {MAX_RULES} device rules")));
    }
    let all = FOR_ALL.iter().map(|&(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    });
    let rules: Vec<Rule> = rules.iter().map(rule).chain(all).collect();
    let program = load(&compile(&rules))?;
    attach(&program, File::open(cgroup)?.as_raw_fd())
}

fn rule(rule: &LinuxDeviceCgroup) -> Rule {
    let number = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok());
    let letters = rule.access().as_deref().unwrap_or("rwm").chars();
    Rule {
        allow: rule.allow(),
        kind: match rule.typ() {
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            _ => None,
        },
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: letters.fold(0, |access, letter| {
            access
                | match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => 0,
                }
        }),
    }
}

/// An instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate: immediate.cast_signed() }
}

// The registers. The context (`struct bpf_cgroup_dev_ctx`) comes in the second.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The accesses that are asked for and not yet allowed.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// The instructions: `BPF_LDX | BPF_MEM | BPF_W`; 32-bit arithmetic and jumps, with an immediate or a register.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const COPY: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNEQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// From the last rule to the first: the first that matches an access decides.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, KIND, CONTEXT, 0, 0),
        instruction(COPY, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev().filter(|rule| rule.access != 0) {
        let verdict =
            [instruction(MOVE, RESULT, 0, 0, u32::from(rule.allow)), instruction(EXIT, 0, 0, 0, 0)];
        let decide = if rule.allow {
            vec![
                instruction(AND, WANTED, 0, 0, ANY & !rule.access),
                instruction(JUMP_UNEQUAL, WANTED, 0, 2, 0),
            ]
        } else {
            vec![
                instruction(COPY, SCRATCH, WANTED, 0, 0),
                instruction(AND, SCRATCH, 0, 0, rule.access),
                instruction(JUMP_UNEQUAL, SCRATCH, 0, 1, 0),
                // BPF_JA: over the verdict.
                instruction(0x05, 0, 0, 2, 0),
            ]
        };
        let matched = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let matched: Vec<_> = matched.iter().filter_map(|&(at, is)| Some((at, is?))).collect();
        for (index, &(register, value)) in matched.iter().enumerate() {
            let over = matched.len() - index - 1 + decide.len() + verdict.len();
            program.push(instruction(JUMP_UNEQUAL, register, 0, over as i16, value));
        }
        program.extend(decide);
        program.extend(verdict);
    }
    program.extend([instruction(MOVE, RESULT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used; the kernel takes the rest for zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    count: u32,
    instructions: u64,
    licence: u64,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    cgroup: RawFd,
    program: RawFd,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: &OwnedFd, cgroup: RawFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    // Groups below it can only be stricter.
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attributes = AttachAttributes {
        cgroup,
        program: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as the structure has, and what it points to outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of the program.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let mut registers = [0_u32; 7];
        let mut at = 0;
        loop {
            let Instruction { code, registers: named, offset, immediate } = program[at];
            let (to, from) = (usize::from(named & 15), usize::from(named >> 4));
            let value = immediate.cast_unsigned();
            at += 1;
            match code {
                LOAD => registers[to] = [access << 16 | kind, major, minor][offset as usize / 4],
                MOVE => registers[to] = value,
                COPY => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_UNEQUAL if registers[to] == value => {}
                JUMP_UNEQUAL | 0x05 => at += offset as usize,
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rules(json: serde_json::Value) -> Vec<Instruction> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        compile(&rules.iter().map(rule).collect::<Vec<_>>())
    }

    #[test]
    fn for_each_access_the_last_rule_that_names_the_device_decides() {
        let program = rules(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
        ]));
        let may = |kind, major, minor, access| run(&program, kind, major, minor, access);
        assert!(may(CHARACTER, 10, 229, READ) && may(CHARACTER, 10, 229, READ | WRITE));
        assert!(!may(CHARACTER, 10, 229, MKNOD) && !may(CHARACTER, 10, 229, READ | MKNOD));
        assert!(!may(CHARACTER, 10, 228, READ) && !may(BLOCK, 10, 229, READ));
        assert!(may(BLOCK, 8, 7, ANY) && may(BLOCK, 8, 1, READ));
        assert!(!may(BLOCK, 8, 1, WRITE) && !may(BLOCK, 8, 1, READ | WRITE));
    }

    #[test]
    fn without_rules_everything_is_refused_and_a_rule_without_type_is_for_all() {
        assert!(!run(&compile(&[]), CHARACTER, 1, 3, READ));
        let all = rules(serde_json::json!([{"allow": true}]));
        assert!(run(&all, BLOCK, 8, 0, ANY) && run(&all, CHARACTER, 4, 64, READ));
    }
}
