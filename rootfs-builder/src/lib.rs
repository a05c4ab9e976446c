//! The guest image: an initial RAM file system with the agent as `/init` and nothing that it does
//! not need. The same agent gives the same bytes, whoever builds it, where and when.
//!
//! [`image::build`] is the whole job: [`elf`] says whether the agent can be a first process at all,
//! [`cpio`] writes the archive, and [`publish`] puts it in its place in one step.

pub mod cpio;
pub mod elf;
pub mod image;
pub mod publish;
