//! `ctr run`: output, exit codes, the guest's kernel, the snapshot.

use crate::context::Context;
use anyhow::{Result, bail};
use lab::containerd::Version;
use std::fs;
use std::path::Path;

crate::cases!(
    crate::Scope::EachContainerd;
    echoes;
    crate::Scope::OneOrEach;
    a_missing_command_is_named,
    a_missing_rootfs_is_named;
    crate::Scope::Once;
    the_kernel_is_the_guests,
    stdin_reaches_the_container,
    a_written_file_is_in_the_snapshot_and_nowhere_else;
    crate::Scope::AllEach;
    exit_codes_come_through,
    stdout_and_stderr_are_apart;
    crate::Scope::AllOnce;
    a_file_without_x_bit_is_named,
);

fn echoes(context: &Context) -> Result<()> {
    let said = context.container().output(&["echo", "hello from inside"])?.expect_code(0)?;
    if said.text() != "hello from inside" {
        bail!("echo said {:?}", said.text());
    }
    Ok(())
}

fn exit_codes_come_through(context: &Context) -> Result<()> {
    for code in [0, 1, 42, 137] {
        context.container().output(&["sh", "-c", &format!("exit {code}")])?.expect_code(code)?;
    }
    Ok(())
}

fn the_kernel_is_the_guests(context: &Context) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest = context.container().output(&["uname", "-r"])?.expect_code(0)?.text();
    if guest.is_empty() || guest == host.trim() {
        bail!("the container runs on {guest:?}, the host on {:?}", host.trim());
    }
    Ok(())
}

/// By lines: `ctr run` itself loses an end of input that comes before its task has started.
fn stdin_reaches_the_container(context: &Context) -> Result<()> {
    let run = context.container().stdin("one two\nthree\n");
    let script = "read -r a; read -r b; echo \"<$a><$b>\"";
    let said = run.output(&["sh", "-c", script])?.expect_code(0)?.text();
    if said != "<one two><three>" {
        bail!("the container read {said:?}");
    }
    Ok(())
}

fn stdout_and_stderr_are_apart(context: &Context) -> Result<()> {
    let run = context.container();
    let both = run.output(&["sh", "-c", "echo out; echo err >&2"])?.expect_code(0)?;
    if both.text() != "out" || both.stderr.trim() != "err" {
        bail!("stdout {:?}, stderr {:?}", both.text(), both.stderr);
    }
    Ok(())
}

fn a_written_file_is_in_the_snapshot_and_nowhere_else(context: &Context) -> Result<()> {
    let container = context.sleeper()?;
    let name = format!("/root/written-by-{}", container.id);
    container.exec(&["sh", "-c", &format!("echo inside > {name} && sync")])?.expect_code(0)?;
    let root = context.containerd.root();
    let found = find(Path::new(&root), name.trim_start_matches("/root/"));
    if found.len() != 1 || fs::read_to_string(&found[0])?.trim() != "inside" {
        bail!("in the snapshots of {root}: {found:?}");
    }
    let upper = "/io.containerd.snapshotter.v1.overlayfs/snapshots/";
    if !found[0].contains(upper) || Path::new(&name).exists() {
        bail!("the file lies at {found:?}; on the host: {}", Path::new(&name).exists());
    }
    container.remove()
}

fn find(directory: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            found.push(path.to_string_lossy().into_owned());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(find(&path, name));
        }
    }
    found
}

fn a_missing_command_is_named(context: &Context) -> Result<()> {
    let words = ["no-such-command", "executable file not found in $PATH"];
    context.container().output(&["no-such-command"])?.expect_error(&words)?;
    let container = context.sleeper()?;
    container.exec(&["no-such-command"])?.expect_error(&words)?;
    container.remove()
}

fn a_file_without_x_bit_is_named(context: &Context) -> Result<()> {
    let words = ["/etc/passwd", "permission denied"];
    context.container().output(&["/etc/passwd"])?.expect_error(&words)?;
    let container = context.sleeper()?;
    container.exec(&["/etc/passwd"])?.expect_error(&words)?;
    container.remove()
}

fn a_missing_rootfs_is_named(context: &Context) -> Result<()> {
    // The two versions of ctr differ in who notices: ctr itself, or the runtime.
    let words: &[&str] = match context.containerd {
        Version::V1_7 | Version::V2_4 => &["/no/such/rootfs"],
    };
    let run = context.container().rootfs("/no/such/rootfs");
    let id = run.id().to_owned();
    let outcome = run.output(&["true"])?.expect_error(words);
    context.ctr(&["container", "delete", &id])?;
    outcome.map(drop)
}
