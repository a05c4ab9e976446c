//! The virtual machine monitor: builds one machine from a `MachineConfig`, confines itself, runs it.

pub mod arch;
pub mod bus;
pub mod cmdline;
pub mod confine;
pub mod control;
pub mod counters;
pub mod devices;
pub mod error;
pub mod events;
pub mod exit;
pub mod kernel;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod seccomp;
pub mod vcpu;
pub mod virtio;
