//! x86-64: how the guest finds its processors, its memory and its kernel parameters.

pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod registers;
