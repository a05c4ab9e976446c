//! The connection to the host, and what goes over it besides calls: standard streams, connections that are forwarded,
//! questions to a resolver.

pub mod forward;
pub mod resolver;
pub mod stdio;
pub mod streams;
pub mod transport;
