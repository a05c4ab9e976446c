//! What is said to the guest, and what it says.

pub mod agent;
pub(crate) mod clock;
mod frames;
#[doc(hidden)]
pub mod log;
pub(crate) mod paths;
