//! `kata-like-rootfs-builder --agent PATH --out PATH`: makes the guest image.

use clap::Parser;
use kata_like_rootfs_builder::image;
use std::path::PathBuf;

/// Makes the guest image: the agent as the first process, and nothing that it does not need.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The agent, a static x86-64 executable.
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// Where the image is put.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let size = image::build(&arguments.agent, &arguments.out)?;
    println!("{}: {} KiB", arguments.out.display(), size.div_ceil(1024));
    Ok(())
}
