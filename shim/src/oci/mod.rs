//! What the OCI runtime-spec says, and what becomes of it here.

pub mod bundle;
pub mod features;
pub mod hooks;
pub mod lenient;
mod lost;
mod memory_policy;
pub mod plan;
pub mod pod;
pub mod seccomp;
