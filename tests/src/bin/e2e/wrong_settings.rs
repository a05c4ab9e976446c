//! Settings that can't work: each gets an error that names the thing, and leaves nothing.

use crate::context::Context;
use anyhow::Result;
use nix::mount::{MsFlags, mount, umount};
use std::fs;
use std::path::Path;

crate::cases!(
    crate::Scope::OneOrEach;
    a_kernel_that_is_missing;
    crate::Scope::Once;
    no_vcpus,
    too_little_memory,
    a_kernel_that_is_truncated,
    an_unknown_setting,
    a_full_disk_under_the_state_directory,
    and_the_next_run_works;
    crate::Scope::AllOnce;
    too_many_vcpus,
    a_kernel_that_is_none,
    the_sample_that_is_installed_is_right,
);

const KERNEL: &str = "/usr/share/kata-like/vmlinux";

/// Runs a container with this configuration; it must fail with an error that has all of `words`.
fn refused(context: &Context, config: &str, words: &[&str]) -> Result<()> {
    let path = format!("/tmp/{}.toml", context.fresh_id());
    fs::write(&path, config)?;
    let run = context.container().flag("--runtime-config-path").flag(&path);
    let outcome = run.output(&["true"]).and_then(|output| output.expect_error(words));
    fs::remove_file(&path)?;
    outcome.map(drop)
}

fn no_vcpus(context: &Context) -> Result<()> {
    refused(context, "[machine]\nvcpus = 0\n", &["vcpus", "0"])
}

fn too_many_vcpus(context: &Context) -> Result<()> {
    refused(context, "[machine]\nvcpus = 4096\n", &["4096", "vCPU"])
}

fn too_little_memory(context: &Context) -> Result<()> {
    refused(context, "[machine]\nmemory_mib = 1\n", &["memory_mib", "1"])
}

fn a_kernel_that_is_missing(context: &Context) -> Result<()> {
    refused(context, "[machine]\nkernel = \"/no/such/vmlinux\"\n", &["/no/such/vmlinux"])
}

fn a_kernel_that_is_truncated(context: &Context) -> Result<()> {
    let path = format!("/tmp/{}-vmlinux", context.fresh_id());
    let whole = fs::read(KERNEL)?;
    fs::write(&path, &whole[..whole.len() / 2])?;
    let outcome =
        refused(context, &format!("[machine]\nkernel = {path:?}\n"), &[&path, "truncated"]);
    fs::remove_file(&path)?;
    outcome
}

fn a_kernel_that_is_none(context: &Context) -> Result<()> {
    refused(context, "[machine]\nkernel = \"/etc/passwd\"\n", &["/etc/passwd", "kernel"])
}

fn an_unknown_setting(context: &Context) -> Result<()> {
    refused(context, "[machine]\nvcpu = 1\n", &["vcpu"])
}

fn a_full_disk_under_the_state_directory(context: &Context) -> Result<()> {
    let directory = format!("/tmp/{}-full", context.fresh_id());
    fs::create_dir(&directory)?;
    let none = MsFlags::empty();
    mount(Some("tmpfs"), directory.as_str(), Some("tmpfs"), none, Some("size=16k,nr_inodes=64"))?;
    let filler = Path::new(&directory).join("filler");
    let _ = fs::write(&filler, vec![1; 64 << 10]);
    let config = format!("[paths]\nstate = {directory:?}\n");
    let outcome = refused(context, &config, &[&directory, "No space left"]);
    umount(directory.as_str())?;
    fs::remove_dir(&directory)?;
    outcome
}

fn the_sample_that_is_installed_is_right(context: &Context) -> Result<()> {
    let sample = "/usr/share/kata-like/config.sample.toml";
    let run = context.container().flag("--runtime-config-path").flag(sample);
    run.output(&["true"])?.expect_code(0).map(drop)
}

fn and_the_next_run_works(context: &Context) -> Result<()> {
    context.container().output(&["true"])?.expect_code(0).map(drop)
}
