//! What the processes of kata-like say to each other.
//!
//! - [`agent`]: shim → agent, ttrpc over vsock (`agent.proto`).
//! - [`cri`] and [`sandbox_update`]: what containerd says of a pod, as far as no crate has it; [`mounts`]: what it is told.
//! - [`machine`] and [`control`]: shim ↔ VMM.
//! - [`packet`]: JSON datagrams on a unix socket, file descriptors beside them; what carries [`control`] and others.
//! - [`ports`]: vsock ports and the preamble of a standard stream.
//! - [`ids`]: which container and exec ids are allowed.

pub mod control;
pub mod ids;
pub mod machine;
pub mod packet;
pub mod ports;

/// Generated from `agent.proto`: messages.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent_api/agent.rs"));
}

/// Generated from `cri.proto`.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/agent_api/cri.rs"));
}

/// Generated from `mounts.proto`.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod mounts {
    include!(concat!(env!("OUT_DIR"), "/agent_api/mounts.rs"));
}

/// Generated from `sandbox_update.proto`.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod sandbox_update {
    include!(concat!(env!("OUT_DIR"), "/agent_api/sandbox_update.rs"));
}

/// Generated from `agent.proto`: the ttrpc service `Agent` and its client.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_api/agent_ttrpc.rs"));
}
