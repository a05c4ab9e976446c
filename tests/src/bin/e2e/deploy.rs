//! The node installer: what it adds to containerd's configuration, and that it takes all of it away again.

use crate::command;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

crate::cases!(
    crate::Scope::OneOrEach;
    a_node_gets_the_handler_and_is_as_before_without_it;
    crate::Scope::Once;
    what_it_can_not_do_is_named,
    what_another_user_has_built_becomes_roots;
    crate::Scope::AllOnce;
    a_sandbox_keeps_it_wherever_its_state_is,
    nothing_is_left_but_settings;
    crate::Scope::AllNewest;
    where_it_can_be_another_handler_is_on_erofs,
);

const SCRIPT: &str = include_str!("../../../../deploy/install.sh");

/// A node's root in a folder, with a script to install from this machine.
struct Node(PathBuf);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Node {
    fn new(context: &Context) -> Result<Self> {
        let node = Self(Path::new("/tmp").join(context.fresh_id()));
        fs::create_dir_all(node.path("etc/containerd"))?;
        fs::write(node.path("install.sh"), SCRIPT)?;
        Ok(node)
    }

    fn path(&self, of: &str) -> PathBuf {
        self.0.join(of)
    }

    fn run(&self, args: &[&str]) -> Result<command::Output> {
        command::output(&mut self.command(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut sh = Command::new("sh");
        sh.arg(self.path("install.sh")).args(args).env("ROOT", &self.0);
        sh
    }

    /// What is in it but for the script and the configuration.
    fn files(&self) -> Result<String> {
        let mut find = Command::new("find");
        Ok(command::output(find.arg(self.path("usr")).args(["-type", "f"]))?.text())
    }
}

fn a_node_gets_the_handler_and_is_as_before_without_it(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    let config = node.path("etc/containerd/config.toml");
    let without = context.containerd.config().replace(".kata-like]", ".other]");
    fs::write(&config, &without)?;
    let dump = || {
        let containerd = Path::new(context.containerd.bin_dir()).join("containerd");
        let mut dump = Command::new(containerd);
        let dump = dump.arg("--config").arg(&config).args(["config", "dump"]);
        Ok::<_, anyhow::Error>(command::output(dump)?.expect_code(0)?.text())
    };
    let before = dump()?;
    ensure!(!before.contains("runtimes.kata-like]"), "{before}");
    // Twice is as once.
    for _ in 0..2 {
        node.run(&["install", "/"])?.expect_code(0)?;
    }
    let after = dump()?;
    ensure!(after.contains("runtimes.kata-like]") && after.contains("runtimes.other]"), "{after}");
    for file in ["bin/containerd-shim-kata-like-v2", "libexec/kata-like/kata-like-vmm"] {
        let placed = fs::read(node.path(&format!("usr/{file}")))?;
        ensure!(placed == fs::read(format!("/usr/{file}"))?, "{file} is another");
    }
    node.run(&["remove"])?.expect_code(0)?;
    ensure!(fs::read_to_string(&config)? == without, "the configuration is another");
    ensure!(node.files()?.is_empty(), "left: {}", node.files()?);
    Ok(())
}

fn where_it_can_be_another_handler_is_on_erofs(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    let config = node.path("etc/containerd/config.toml");
    let newest = format!("{}:{}", context.containerd.bin_dir(), std::env::var("PATH")?);
    let installed = |before: &str, variables: &[(&str, &str)]| {
        fs::write(&config, before)?;
        let mut install = node.command(&["install", "/"]);
        let said = command::output(install.envs(variables.iter().copied()))?.expect_code(0)?.text();
        let mut dump = Command::new(Path::new(context.containerd.bin_dir()).join("containerd"));
        let dump = dump.arg("--config").arg(&config).args(["config", "dump"]);
        let dump = command::output(dump)?.expect_code(0)?.text();
        let settings = node.path("etc/kata-like/erofs.toml");
        ensure!(settings.exists() || !dump.contains("kata-like-erofs"), "it has no settings");
        node.run(&["remove"])?.expect_code(0)?;
        ensure!(fs::read_to_string(&config)? == before, "the configuration is another");
        Ok::<_, anyhow::Error>((said, dump))
    };
    let of_handler = |dump: &str, name: &str, key: &str| {
        let (_, handler) = dump.split_once(&format!("runtimes.{name}]")).context("the handler")?;
        let line =
            handler.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(" = "));
        Ok::<_, anyhow::Error>(line.unwrap_or_default().trim_matches(['"', '\'']).to_owned())
    };
    let (said, dump) = installed("version = 3\n", &[("PATH", &newest)])?;
    ensure!(said.contains("kata-like-erofs added"), "{said}");
    // It can't run every pod: nobody is put on it who has not asked for it.
    ensure!(of_handler(&dump, "kata-like", "snapshotter")?.is_empty(), "{dump}");
    ensure!(of_handler(&dump, "kata-like-erofs", "snapshotter")? == "erofs", "{dump}");
    let settings = of_handler(&dump, "kata-like-erofs", "ConfigPath")?;
    ensure!(settings == "/etc/kata-like/erofs.toml", "{dump}");
    for line in ["default = ['erofs', 'walking']", "default_size = '10GiB'", "'--sort=none'"] {
        ensure!(dump.replace('"', "'").contains(line), "no {line} in {dump}");
    }
    let settings = node.path("etc/kata-like/erofs.toml");
    ensure!(!settings.exists(), "its settings are left");
    // What somebody has changed there stays.
    fs::create_dir(node.path("etc/kata-like"))?;
    fs::write(&settings, "[machine]\nmax_disks = 12\n")?;
    let (said, _) = installed("version = 3\n", &[("PATH", &newest)])?;
    ensure!(!said.contains("config.toml: what counts"), "{said}");
    ensure!(fs::read_to_string(&settings)?.contains("12"), "its settings are others");
    fs::write(node.path("etc/kata-like/config.toml"), "")?;
    let (said, _) = installed("version = 3\n", &[("PATH", &newest)])?;
    ensure!(said.contains("config.toml: what counts for both"), "{said}");
    let own =
        "version = 3\n[plugins.\"io.containerd.snapshotter.v1.erofs\"]\nset_immutable = true\n";
    for (before, variables, why) in [
        ("version = 3\n", &[("PATH", &*newest), ("EROFS", "no")][..], "EROFS=no"),
        ("version = 3\n", &[("PATH", "/usr/bin:/bin")], "older than 2.4"),
        ("version = 2\n", &[("PATH", &newest)], "of version 2"),
        (own, &[("PATH", &newest)], "has tables for it already"),
    ] {
        let (said, dump) = installed(before, variables)?;
        ensure!(said.contains(why) && !dump.contains("kata-like-erofs"), "{why}: {said}: {dump}");
        of_handler(&dump, "kata-like", "runtime_type").context(why)?;
    }
    Ok(())
}

/// Whoever could write to it, root will run it; also where a broken off installation of the same has left a file.
fn what_another_user_has_built_becomes_roots(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    let tree = node.path("built");
    let programs = ["bin/kata-like", "bin/containerd-shim-kata-like-v2", "libexec/kata-like/vmm"];
    for file in programs {
        write_as(&tree.join("usr").join(file), 0o4777)?;
    }
    let data = "share/kata-like/vmlinux";
    write_as(&tree.join("usr").join(data), 0o666)?;
    write_as(&node.path("usr/libexec/kata-like/vmm.new"), 0o777)?;
    let install = "umask 0; exec sh install.sh install built";
    let mut sh = Command::new("sh");
    let sh = sh.args(["-c", install]).current_dir(&node.0).env("ROOT", &node.0);
    command::output(sh)?.expect_code(0)?;
    let mut find = Command::new("find");
    let find = find.arg(node.path("usr")).args(["(", "!", "-uid", "0", "-o", "!", "-gid", "0"]);
    let find = command::output(find.args(["-o", "-perm", "/7022", ")", "-ls"]))?.expect_code(0)?;
    ensure!(find.text().is_empty(), "not root's alone: {}", find.text());
    for (file, mode) in [(programs[2], 0o755), (data, 0o644)] {
        let placed = fs::metadata(node.path("usr").join(file))?.mode() & 0o7777;
        ensure!(placed == mode, "{file} has the mode {placed:o}");
    }
    Ok(())
}

/// A file of somebody's who is not root.
fn write_as(path: &Path, mode: u32) -> Result<()> {
    const BUILDER: u32 = 1000;
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(path, "#!/bin/sh\n")?;
    chown(path, Some(BUILDER), Some(BUILDER))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn a_sandbox_keeps_it_wherever_its_state_is(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    let config = node.path("etc/containerd/config.toml");
    fs::write(&config, "version = 2\n[a.options]\n  ConfigPath = \"/srv/of a handler.toml\"\n")?;
    node.run(&["install", "/"])?.expect_code(0)?;
    fs::create_dir_all(node.path("etc/kata-like"))?;
    fs::create_dir_all(node.path("srv"))?;
    let state = |at: &str| format!("[paths]\nstate = '{at}' # there is room\n");
    fs::write(node.path("etc/kata-like/config.toml"), state("/srv/large disk"))?;
    fs::write(node.path("srv/of a handler.toml"), state("/srv/other"))?;
    for sandbox in [
        "run/kata-like/k8s.io/one",
        "run/kata-like-cli/one",
        "srv/large disk/k8s.io/one",
        "srv/other/k8s.io/one",
    ] {
        fs::create_dir_all(node.path(sandbox))?;
        let refused = node.run(&["remove"])?.expect_error(&["still sandboxes", sandbox]);
        refused.with_context(|| sandbox.to_owned())?;
        fs::remove_dir(node.path(sandbox))?;
    }
    // One of whose state this node's settings say nothing.
    let shim = node.path("usr/bin/containerd-shim-kata-like-v2").display().to_string();
    let run = context.container().flag("--runtime").flag(&shim);
    let container = run.detached(&["sleep", "1000000"])?;
    node.run(&["remove"])?.expect_error(&["still sandboxes", "process", &shim])?;
    container.remove()?;
    let gone = || Ok(node.run(&["remove"])?.code == 0);
    command::eventually("it is removed", command::DEADLINE, gone)
}

fn nothing_is_left_but_settings(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    let all = || -> Result<String> {
        let mut find = Command::new("sh");
        let find = find.args(["-c", "find etc run usr var | sort"]).current_dir(&node.0);
        Ok(command::output(find)?.expect_code(0)?.text())
    };
    for directory in ["etc/kata-like", "run", "usr/bin", "usr/libexec", "usr/share", "var/lib"] {
        fs::create_dir_all(node.path(directory))?;
    }
    fs::write(node.path("etc/kata-like/config.toml"), "[paths]\nstate = \"/run/states\"\n")?;
    fs::write(node.path("etc/containerd/config.toml"), "version = 2\n")?;
    let before = all()?;
    node.run(&["install", "/"])?.expect_code(0)?;
    // Directories stay with the last sandbox; some more does after a crash.
    for directory in ["run/kata-like/k8s.io", "run/states/default", "run/kata-like-cli"] {
        fs::create_dir_all(node.path(directory))?;
    }
    for file in ["run/kata-like-uids/1879048192", "var/lib/kata-like/run/one/rootfs/file"] {
        fs::create_dir_all(node.path(file).parent().context("a folder")?)?;
        fs::write(node.path(file), "")?;
    }
    let said = node.run(&["remove"])?.expect_code(0)?.text();
    ensure!(said.contains("settings of this node's"), "{said}");
    ensure!(all()? == before, "{} instead of {before}", all()?);
    Ok(())
}

fn what_it_can_not_do_is_named(context: &Context) -> Result<()> {
    let node = Node::new(context)?;
    node.run(&["remove"])?.expect_error(&["nothing was installed"])?;
    node.run(&["install", "/nowhere"])?.expect_error(&["/nowhere", "cargo xtask build"])?;
    let config = node.path("etc/containerd/config.toml");
    fs::write(&config, "root = \"/var/lib/containerd\"\n").context("a configuration")?;
    node.run(&["install", "/"])?.expect_error(&["config.toml", "version 1"])?;
    // One that was not there is made, and goes.
    fs::remove_file(&config)?;
    node.run(&["install", "/"])?.expect_code(0)?;
    ensure!(fs::read_to_string(&config)?.contains("kata-like.v2"), "no handler");
    node.run(&["remove"])?.expect_code(0)?;
    ensure!(!config.exists(), "the configuration is left");
    Ok(())
}
