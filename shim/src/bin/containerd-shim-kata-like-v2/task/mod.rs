//! containerd's task API, in terms of a sandbox.

pub mod convert;
pub mod events;
pub mod metrics;
pub mod service;
pub mod slot;
mod wanted;

pub use convert::timestamp;
