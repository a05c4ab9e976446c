//! containerd's task API, in terms of a sandbox.

pub mod convert;
pub mod events;
pub mod metrics;
pub mod service;
pub mod slot;

pub use convert::timestamp;
