//! How a process of a container is made: a process that forks, one that builds, the last steps in the new one.

pub mod deadline;
mod executor;
pub mod job;
mod start_hooks;
mod users;
mod worker;
pub mod zygote;
