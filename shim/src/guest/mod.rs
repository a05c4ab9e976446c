//! What is said to the guest, and what it says.

pub mod agent;
#[doc(hidden)]
pub mod log;
pub(crate) mod paths;
