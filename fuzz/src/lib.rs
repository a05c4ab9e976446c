//! Fuzz targets for what reads bytes of a guest or an image, and what they share: an input as a sequence of choices, a
//! guest's driver that makes them, files.

pub mod choices;
pub mod guest;
pub mod scratch;
pub mod targets;

// What only programs have, and reads bytes of others.
#[path = "../../shim/src/bin/kata-like/image/mod.rs"]
#[allow(dead_code, unused_imports)]
mod image;
#[path = "../../shim/src/bin/containerd-shim-kata-like-v2/task/metrics.rs"]
#[allow(dead_code)]
mod metrics;
