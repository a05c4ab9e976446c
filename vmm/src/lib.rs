//! The virtual machine monitor: builds one machine from a `MachineConfig`, confines itself, runs it.

pub mod bus;
pub mod devices;
pub mod io_loop;
pub mod virtio;
