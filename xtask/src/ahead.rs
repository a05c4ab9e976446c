//! Everything that a lab with the product in it is made of, side by side.

use crate::{build, lab};
use ::lab::host::Ground;
use ::lab::machine::{self, Purpose};
use ::lab::root::Root;
use anyhow::Result;
use std::path::PathBuf;

/// Builds the product, and beside it all that the lab is made of; answers the lab's agent.
///
/// What mostly waits for the network (the kernel's source, the lab's packages) has company that computes.
///
/// # Errors
/// When a part can't be made; it is told at once, and the parts beside it are finished first.
pub fn make(purpose: Purpose) -> Result<PathBuf> {
    let told = |error: &anyhow::Error| {
        eprintln!("error: {error:#}; what is made beside it is finished first");
    };
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| build::guest_kernel().inspect_err(told));
        let root = scope.spawn(|| Root::prepare().inspect_err(told));
        let agent = || match purpose {
            Purpose::Show => build::lab_agent_alone(),
            Purpose::Change | Purpose::Release => build::lab_agent_and_tests(),
        };
        let programs = build::programs().and_then(|()| agent()).inspect_err(told);
        build::joined(root)?;
        let agent = programs?;
        // The kernel takes longest: the lab boots beside it.
        if lab::ground()? == Ground::Emulated {
            machine::freeze_ahead(&agent, purpose).inspect_err(told)?;
        }
        build::install_guest(&build::joined(kernel)?)?;
        Ok(agent)
    })
}
