//! Generates the agent's ttrpc code, and what is lacking of containerd's, from the `.proto` files, without protoc.

use std::path::{Path, PathBuf};

const PROTOS: [&str; 4] =
    ["src/agent.proto", "src/cri.proto", "src/mounts.proto", "src/sandbox_update.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("agent_api");
    std::fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS)
        .include("src")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            gen_mod: true,
            ..Default::default()
        })
        .run()?;
    strip_inner_attributes(&out)
}

/// Generated files start with `#![…]` lines, which `include!` refuses; the module that includes them sets its own.
fn strip_inner_attributes(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let text: String = std::fs::read_to_string(&path)?
            .lines()
            .filter(|l| !l.starts_with("#![") && !l.starts_with("//!"))
            .flat_map(|l| [l, "\n"])
            .collect();
        std::fs::write(&path, text)?;
    }
    Ok(())
}
