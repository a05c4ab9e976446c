//! One sandbox of kata-like: a virtual machine, its agent, and the containers in it.
//!
//! The containerd shim and the command line are two owners of the same [`Sandbox`]; nothing of containerd's
//! protocol is in here. What flows where:
//!
//! ```text
//! config ─▶ settings ─▶ plan ─▶ vm (VMM + file server)     storage (what the guest sees of the host)
//!                         └───▶ agent (ttrpc over vsock)    io      (standard streams)
//! sandbox: operations ─▶ table: what is legal, and the events ─▶ owner
//! ```

pub mod agent;
pub mod bundle;
pub mod config;
pub mod disk;
pub mod error;
pub mod event;
mod guest_paths;
#[doc(hidden)]
pub mod guest_log;
mod hooks;
pub mod io;
mod lost;
mod mount_options;
pub mod overhead;
pub mod paths;
pub mod persist;
pub mod phase;
pub mod plan;
mod sandbox;
pub mod seccomp;
pub mod settings;
pub mod storage;
mod table;
mod tree;
mod undo;
pub mod vm;

pub use agent::Process;
pub use error::{Error, Result};
pub use sandbox::{Launch, NewContainer, ProcessState, Sandbox};
pub use table::Phase;
