//! The connection to the host, and the standard streams that go over it.

pub mod forward;
pub mod stdio;
pub mod streams;
pub mod transport;
