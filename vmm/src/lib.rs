//! The virtual machine monitor: builds one machine from a `MachineConfig`, confines itself, runs it.

pub mod arch;
pub mod bus;
pub mod causes;
pub mod cmdline;
pub mod confine;
pub mod control;
pub mod counters;
pub mod devices;
pub mod error;
pub mod events;
pub mod exit;
pub mod kvm;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod seccomp;
pub mod vcpu;
pub mod verdict;
pub mod virtio;
