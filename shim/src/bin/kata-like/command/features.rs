//! `features`: the OCI runtime-spec's "Features Structure", in runc's form.

use crate::command::{json, out};
use anyhow::Result;
use sandbox::features;

pub(crate) fn main() -> Result<u8> {
    out::print(&format!("{}\n", json::pretty(&features::document(), "    ")?))?;
    Ok(0)
}
