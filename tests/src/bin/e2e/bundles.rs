//! `kata-like run` on a bundle: malformed ones are refused by name.

use crate::bundle::{Bundle, config};
use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

crate::cases!(
    crate::Scope::Once;
    a_bundle_runs,
    an_image_archive_runs,
    this_host_is_found_fit,
    broken_json_is_refused,
    a_bundle_without_its_rootfs_is_refused,
    a_bundle_without_config_is_refused;
    crate::Scope::AllOnce;
    an_interactive_run_has_a_terminal,
    an_unknown_field_is_no_error,
    a_bundle_without_process_is_refused,
);

fn a_bundle_runs(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["sh", "-c", "echo ran; exit 5"])?;
    let said = bundle.run()?.expect_code(5)?.text();
    if said != "ran" {
        bail!("it said {said:?}");
    }
    Ok(())
}

/// On a terminal that `script` makes.
fn an_interactive_run_has_a_terminal(_: &Context) -> Result<()> {
    let image = lab::containerd::IMAGE_ARCHIVE;
    let inside = "[ -t 0 ] && [ -t 1 ] && echo a terminal of $(stty size)";
    let command = format!("stty rows 33 cols 77; kata-like run -it {image} sh -c '{inside}'");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    let said = command::output(&mut script)?.expect_code(0)?.text();
    if !said.contains("a terminal of 33 77") {
        bail!("it said {said:?}");
    }
    Ok(())
}

/// The lab is a host that is fit; `check` says so line by line.
fn this_host_is_found_fit(_: &Context) -> Result<()> {
    let said = command::output(Command::new("/usr/bin/kata-like").arg("check"))?;
    for word in ["KVM", "containerd", "kernel", "ok       network", "ok       port-forwarding"] {
        if !said.stdout.windows(word.len()).any(|window| window == word.as_bytes()) {
            bail!("check says nothing of {word}: {}", said.text());
        }
    }
    said.expect_code(0).map(drop)
}

fn an_image_archive_runs(_: &Context) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut run = Command::new("/usr/bin/kata-like");
    let script = "uname -r; grep Seccomp: /proc/self/status";
    run.args(["run", lab::containerd::IMAGE_ARCHIVE, "sh", "-c", script]);
    let said = command::output(&mut run)?.text();
    let guest = said.lines().next().unwrap_or_default();
    if guest.is_empty() || guest == host.trim() {
        bail!("the kernel inside is {guest:?}");
    }
    if !said.contains("Seccomp:\t2") {
        bail!("an image runs without the usual filter: {said:?}");
    }
    Ok(())
}

fn broken_json_is_refused(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["true"])?;
    fs::write(bundle.0.join("config.json"), "{\"ociVersion\": \"1.2.0\", ")?;
    bundle.run()?.expect_error(&["config.json", "line 1"]).map(drop)
}

/// The runtime-spec (Extensibility) forbids an error for an unknown property; it is named in a warning.
fn an_unknown_field_is_no_error(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["echo", "ran"])?;
    let mut config = config(&["echo", "ran"]);
    config["linux"]["noSuchField"] = json!(1);
    bundle.write_config(&config)?;
    let output = bundle.run()?.expect_code(0)?;
    if output.text() != "ran" || !output.stderr.contains("/linux/noSuchField") {
        bail!("it said {:?} and warned {:?}", output.text(), output.stderr);
    }
    Ok(())
}

fn a_bundle_without_process_is_refused(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["true"])?;
    let mut config = config(&["true"]);
    config.as_object_mut().map(|all| all.remove("process"));
    bundle.write_config(&config)?;
    bundle.run()?.expect_error(&["process"]).map(drop)
}

fn a_bundle_without_its_rootfs_is_refused(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["true"])?;
    fs::remove_dir_all(bundle.0.join("rootfs"))?;
    bundle.run()?.expect_error(&["rootfs"]).map(drop)
}

fn a_bundle_without_config_is_refused(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["true"])?;
    fs::remove_file(Path::new(&bundle.0).join("config.json"))?;
    bundle.run()?.expect_error(&["config.json"]).map(drop)
}
