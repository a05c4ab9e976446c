//! `make run`: from a fresh checkout to a container in its own virtual machine.

use crate::{build, lab};
use ::lab::client::Client;
use ::lab::containerd::{IMAGE, Version};
use ::lab::host::Ground;
use ::lab::machine::{self, Lab, Purpose};
use ::lab::root::Root;
use ::lab::wire::Exec;
use anyhow::{Result, bail};
use std::path::PathBuf;

const RUN: &str = "run --rm --runtime io.containerd.kata-like.v2";

/// Builds, brings the lab up, installs, and runs busybox through containerd on our runtime.
///
/// # Errors
/// When a step fails.
pub fn run() -> Result<()> {
    let agent = build()?;
    let client = Lab::named_by_environment()?.up(&agent, lab::ground()?, Purpose::Show)?;
    lab::install(&client)?;
    let host = say(&client, "uname -r")?;
    let ctr = format!("{}/ctr", Version::V1_7.bin_dir());
    let id = format!("demo-{}", std::process::id());
    let command = format!("{ctr} {RUN} {IMAGE} {id} uname -r");
    let guest = say(&client, &command)?;
    println!();
    println!("  host kernel       {host}");
    println!("  container kernel  {guest}");
    println!();
    println!("That was, in the lab:  {command}");
    println!("Look around in there:  cargo xtask lab shell");
    println!("Run all tests:         make test");
    Ok(())
}

/// Builds the product, and beside it all that the lab is made of; answers the lab's agent.
///
/// What mostly waits for the network (the kernel's source, the lab's packages) has company that computes.
fn build() -> Result<PathBuf> {
    let told = |error: &anyhow::Error| {
        eprintln!("error: {error:#}; what is made beside it is finished first");
    };
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| build::guest_kernel().inspect_err(told));
        let root = scope.spawn(|| Root::prepare().inspect_err(told));
        let programs = build::programs().and_then(|()| build::lab_program("lab-agent"));
        let programs = programs.inspect_err(told);
        build::joined(root)?;
        let agent = programs?;
        // The kernel takes longest: the lab boots beside it.
        if lab::ground()? == Ground::Emulated {
            machine::freeze_ahead(&agent, Purpose::Show).inspect_err(told)?;
        }
        build::install_guest(&build::joined(kernel)?)?;
        Ok(agent)
    })
}

/// What a command in the lab prints.
fn say(client: &Client, command: &str) -> Result<String> {
    let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    let mut out = Vec::new();
    let status =
        client.exec_to(Exec { argv, ..Exec::default() }, None, &mut out, &mut std::io::stderr())?;
    if status != 0 {
        bail!("`{command}` failed ({status}) in the lab; `cargo xtask lab logs` shows more");
    }
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}
