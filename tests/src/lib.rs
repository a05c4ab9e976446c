//! The lab: a machine in which KVM is real, whatever the host.
//!
//! A first-level Debian runs under QEMU's software emulation, which offers nested SVM; in it the kernel's own
//! `kvm_amd` runs our guests. Its root is built once ([`root`]), booted once and frozen ([`machine`]),
//! and from then on resumed in about a second. Where the host's own KVM runs guests, the same root stands on the
//! host's kernel instead ([`host`]). [`client`] speaks to the agent in it ([`wire`]).

pub mod bench;
pub mod cache;
pub mod client;
pub mod conformance;
pub mod containerd;
pub mod emulator;
pub mod go;
pub mod host;
pub mod image;
pub mod machine;
pub mod pods;
pub mod programs;
pub mod qemu;
pub mod qmp;
pub mod root;
pub mod terminal;
pub mod wire;
