//! One sandbox of kata-like: a virtual machine, its agent, and the containers in it.
//!
//! The containerd shim and the command line are two owners of the same [`Sandbox`]; nothing of containerd's
//! protocol is in here. What flows where:
//!
//! ```text
//! config ─▶ settings ─▶ oci::plan ─▶ vm (VMM + file server)    host::storage (what the guest sees of the host)
//!                           └──────▶ guest::agent (over vsock) io            (standard streams)
//! sandbox: operations ─▶ sandbox::table: what is legal, and the events ─▶ owner
//! ```

pub mod config;
pub mod error;
mod guest;
mod host;
pub mod io;
pub mod levels;
pub mod milestone;
mod oci;
mod sandbox;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod vm;

pub use error::{Error, Result};
pub use guest::agent::{self, Process};
#[doc(hidden)]
pub use guest::log as guest_log;
pub use host::blocking::{blocking, within};
pub use host::descriptor::place;
pub use host::network::probe as network_probe;
pub use host::peer::has_hung_up;
pub use host::replace::replace;
pub use host::{cgroup, limits, number_list, overhead, paths, persist, storage};
pub use oci::{bundle, features, hooks, lenient, plan, pod, seccomp};
pub use sandbox::event;
pub use sandbox::table::Phase;
pub use sandbox::{Launch, NewContainer, NewExec, ProcessState, Sandbox};
pub use sandbox::{PodFile, PodResize, PodSize, PodSpec, SandboxSpec};
