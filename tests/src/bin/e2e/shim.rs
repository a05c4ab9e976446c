//! The shim as containerd calls it: `-v`, `-info`, and the methods that are not there yet.

use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};
use lab::containerd::Version;
use std::process::Command;

crate::cases!(
    crate::Scope::EachContainerd;
    unsupported_methods_are_unimplemented_by_name,
    it_says_its_version,
    it_describes_itself,
);

const SHIM: &str = "containerd-shim-kata-like-v2";

/// `ctr` has a command for none of them but this; a unit test of the shim calls the others.
fn unsupported_methods_are_unimplemented_by_name(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    // containerd 2 keeps the code in the error's type and prints the text alone.
    let code = if context.containerd == Version::V1_7 { "not implemented" } else { "" };
    container.task(&["checkpoint"], &[])?.expect_error(&["kata-like has no checkpoint", code])?;
    container.remove()
}

fn it_says_its_version(_: &Context) -> Result<()> {
    let said = command::output(Command::new(SHIM).arg("-v"))?.expect_code(0)?.text();
    if !said.contains(SHIM) || !said.contains("0.1.0") {
        bail!("it said {said:?}");
    }
    Ok(())
}

fn it_describes_itself(_: &Context) -> Result<()> {
    let info = command::output(Command::new(SHIM).arg("-info"))?.expect_code(0)?.stdout;
    if !String::from_utf8_lossy(&info).contains("io.containerd.kata-like.v2") {
        bail!("its RuntimeInfo has no name in {} bytes", info.len());
    }
    Ok(())
}
