//! What is fuzzed: a file each, whose first line says what it reaches.

mod agent_answers;
mod balloon;
mod blk;
mod config_json;
mod console;
mod fs_front;
mod fuse;
mod guest_log;
mod image_layer;
mod image_manifest;
mod kernel;
mod mmio;
mod net;
mod rng;
mod vhost_user;
mod vsock;
mod vsock_connection;

/// Takes one input.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const ALL: [(&str, Target); 17] = [
    ("agent_answers", agent_answers::take),
    ("balloon", balloon::take),
    ("blk", blk::take),
    ("config_json", config_json::take),
    ("console", console::take),
    ("fs_front", fs_front::take),
    ("fuse", fuse::take),
    ("guest_log", guest_log::take),
    ("image_layer", image_layer::take),
    ("image_manifest", image_manifest::take),
    ("kernel", kernel::take),
    ("mmio", mmio::take),
    ("net", net::take),
    ("rng", rng::take),
    ("vhost_user", vhost_user::take),
    ("vsock", vsock::take),
    ("vsock_connection", vsock_connection::take),
];

/// The one of this name.
pub fn named(name: &str) -> Option<Target> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
