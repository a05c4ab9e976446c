//! System calls by name, as profiles have them, for each kind of program that the guest's kernel runs.
//!
//! `x86_64.txt` and `i386.txt` are the kernel's own lists (`arch/x86/entry/syscalls`), a name and a number a line;
//! the build of the product fails where they differ from those of the kernel that it builds.

use std::collections::HashMap;

/// A kind of program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of 64 bits.
    X86_64,
    /// Of 32 bits.
    I386,
}

/// One way to make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Which of several calls it is, when that is in the first argument: what is compared, and with what.
    pub first: Option<(u64, u64)>,
}

/// All calls of a kind of program.
#[derive(Debug)]
pub struct Calls(HashMap<&'static str, i64>, Kind);

/// The calls that an i386 program can make by `socketcall` (net.h), from 1.
const BY_SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// The calls that an i386 program can make by `ipc` (ipc.h).
const BY_IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

impl Kind {
    /// How the kernel tells a filter of it (`AUDIT_ARCH_…`).
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
        }
    }
}

impl Calls {
    /// Those of a kind.
    pub fn of(kind: Kind) -> Self {
        let list = match kind {
            Kind::X86_64 => include_str!("x86_64.txt"),
            Kind::I386 => include_str!("i386.txt"),
        };
        let calls = list.lines().filter_map(|line| line.split_once(' '));
        Self(calls.filter_map(|(name, number)| Some((name, number.parse().ok()?))).collect(), kind)
    }

    /// Of which kind they are.
    pub fn kind(&self) -> Kind {
        self.1
    }

    /// The number of a call of its own.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.0.get(name).copied()
    }

    /// Every way to make a call; none where there is no such call.
    pub fn ways(&self, name: &str) -> Vec<Call> {
        let own = self.number(name).map(|number| Call { number, first: None });
        own.into_iter().chain(self.through_another(name)).collect()
    }

    fn through_another(&self, name: &str) -> Option<Call> {
        if self.1 != Kind::I386 {
            return None;
        }
        if let Some(index) = BY_SOCKETCALL.iter().position(|call| *call == name) {
            let which = index as u64 + 1;
            return Some(Call {
                number: self.number("socketcall")?,
                first: Some((u64::MAX, which)),
            });
        }
        let (_, which) = BY_IPC.iter().find(|(call, _)| *call == name)?;
        // The upper half is a version, which the kernel looks at apart.
        Some(Call { number: self.number("ipc")?, first: Some((0xffff, *which)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_the_names_of_both_kinds() {
        let (long, short) = (Calls::of(Kind::X86_64), Calls::of(Kind::I386));
        assert_eq!(long.number("read"), Some(libc::SYS_read));
        assert_eq!(long.number("futex_waitv"), Some(libc::SYS_futex_waitv));
        for new in [
            "io_pgetevents",
            "cachestat",
            "map_shadow_stack",
            "uretprobe",
            "listmount",
            "lsm_list_modules",
        ] {
            assert!(long.number(new).is_some(), "{new}");
        }
        assert_eq!((short.number("read"), short.number("getpid")), (Some(3), Some(20)));
        assert_eq!((long.number("socketcall"), short.number("socketcall")), (None, Some(102)));
    }

    #[test]
    fn a_call_of_i386_can_have_two_ways() {
        let calls = Calls::of(Kind::I386);
        let ways =
            |name| calls.ways(name).iter().map(|way| (way.number, way.first)).collect::<Vec<_>>();
        assert_eq!(ways("socket"), [(359, None), (102, Some((u64::MAX, 1)))]);
        assert_eq!(ways("send"), [(102, Some((u64::MAX, 9)))]);
        assert_eq!(ways("semop"), [(117, Some((0xffff, 1)))]);
        assert_eq!(ways("shmctl"), [(396, None), (117, Some((0xffff, 24)))]);
        assert_eq!(ways("no_such_call"), []);
        assert_eq!(Calls::of(Kind::X86_64).ways("socket").len(), 1);
    }
}
