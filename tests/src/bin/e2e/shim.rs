//! The shim as containerd calls it: `-v`, `-info`, and the methods that are not there yet.

use crate::command;
use crate::containerd_api as api;
use crate::context::Context;
use anyhow::{Result, bail};
use std::process::Command;

crate::cases!(
    crate::Scope::EachContainerd;
    unsupported_methods_are_unimplemented_by_name,
    it_describes_itself;
    crate::Scope::Once;
    it_says_its_version,
);

const SHIM: &str = "containerd-shim-kata-like-v2";

/// `ctr` has a command for none of them but this; a unit test of the shim calls the others. What kind of error it is
/// only containerd's own answer says for every version: `ctr` of containerd 2 prints the text alone.
fn unsupported_methods_are_unimplemented_by_name(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    container.task(&["checkpoint"], &[])?.expect_error(&["kata-like has no checkpoint"])?;
    let refused = api::checkpoint(context.containerd, &container.id);
    let code = refused.as_ref().err().and_then(|error| error.downcast_ref::<api::Refused>());
    if code.is_none_or(|refused| refused.code != api::UNIMPLEMENTED) {
        bail!("a checkpoint was answered with {refused:?}");
    }
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
