//! The connection to the host, and the standard streams that go over it.

pub mod stdio;
pub mod streams;
pub mod transport;
