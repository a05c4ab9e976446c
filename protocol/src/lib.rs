//! What the processes of kata-like say to each other.
//!
//! - [`agent`]: shim → agent, ttrpc over vsock (`agent.proto`).
//! - [`machine`] and [`control`]: shim ↔ VMM, JSON datagrams on a unix socket, file descriptors beside them.
//! - [`ports`]: vsock ports and the preamble of a standard stream.
//! - [`ids`]: which container and exec ids are allowed.

pub mod control;
pub mod ids;
pub mod machine;
pub mod ports;

/// Generated from `agent.proto`: messages.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent_api/agent.rs"));
}

/// Generated from `agent.proto`: the ttrpc service `Agent` and its client.
#[allow(warnings, clippy::all, clippy::pedantic)]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_api/agent_ttrpc.rs"));
}
