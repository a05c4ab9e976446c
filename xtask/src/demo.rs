//! `make run`: from a fresh checkout to a container in its own virtual machine.

use crate::{ahead, lab};
use ::lab::client::Client;
use ::lab::containerd::{IMAGE, Version};
use ::lab::machine::{Lab, Purpose};
use ::lab::wire::Exec;
use anyhow::{Result, bail};

const RUN: &str = "run --rm --runtime io.containerd.kata-like.v2";

/// Builds, brings the lab up, installs, and runs busybox through containerd on our runtime.
///
/// # Errors
/// When a step fails.
pub fn run() -> Result<()> {
    let agent = ahead::make(Purpose::Show)?;
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
    println!("Test a change:         make test");
    Ok(())
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
