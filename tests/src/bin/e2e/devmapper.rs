//! containerd's devmapper snapshotter: a root file system on a thin device, which is a disk of the guest's.
//!
//! It wants its pool when containerd starts, so there is a containerd of this test's own.

use crate::command::{self, DEADLINE, Output};
use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use lab::containerd::{IMAGE, IMAGE_ARCHIVE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

crate::cases!(
    crate::Scope::Newest;
    a_root_on_a_thin_device_is_written_and_committed,
);

const SNAPSHOTTER: &str = "--snapshotter=devmapper";

/// Nobody else makes the devices' nodes here.
const NO_UDEV: (&str, &str) = ("DM_DISABLE_UDEV", "1");

fn run(words: &[&str]) -> Result<String> {
    let mut run = Command::new(words[0]);
    let output = command::output(run.args(&words[1..]).env(NO_UDEV.0, NO_UDEV.1))?;
    Ok(output.expect_code(0).with_context(|| words.join(" "))?.text())
}

/// A thin pool on two loop devices; taken apart when dropped.
struct Pool {
    directory: PathBuf,
    name: String,
    loops: Vec<String>,
}

impl Pool {
    fn new(context: &Context) -> Result<Self> {
        let name = context.fresh_id();
        let directory = PathBuf::from(format!("/var/tmp/{name}"));
        fs::create_dir(&directory)?;
        let mut pool = Self { directory, name, loops: Vec::new() };
        for (file, bytes) in [("metadata", 16 << 20), ("data", 1_u64 << 30)] {
            let path = pool.directory.join(file);
            fs::File::create(&path)?.set_len(bytes)?;
            pool.loops.push(run(&["losetup", "--find", "--show", &path.display().to_string()])?);
        }
        let sectors = (1 << 30) / 512;
        let table = format!("0 {sectors} thin-pool {} 128 32768", pool.loops.join(" "));
        run(&["dmsetup", "create", &pool.name, "--table", &table])?;
        Ok(pool)
    }

    fn at(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let all = run(&["dmsetup", "ls"]).unwrap_or_default();
        let names: Vec<_> = all.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let ours = |name: &&&str| name.starts_with(&self.name);
        // The pool goes last.
        for name in names.iter().filter(ours).filter(|name| **name != self.name) {
            let _ = run(&["dmsetup", "remove", name]);
        }
        let _ = run(&["dmsetup", "remove", &self.name]);
        for device in &self.loops {
            let _ = run(&["losetup", "--detach", device]);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A containerd on such a pool; ended when dropped.
struct Containerd<'a> {
    child: Child,
    address: String,
    context: &'a Context,
}

impl<'a> Containerd<'a> {
    fn start(context: &'a Context, pool: &Pool) -> Result<Self> {
        let config = format!(
            "version = 3\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", \
             \"io.containerd.cri.v1.images\"]\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.snapshotter.v1.devmapper\"]\nroot_path = {:?}\npool_name = {:?}\n\
             base_image_size = \"64MB\"\nfs_type = \"ext4\"\n",
            pool.at("root"),
            pool.at("state"),
            pool.at("containerd.sock"),
            pool.at("devmapper"),
            pool.name,
        );
        fs::write(pool.at("config.toml"), config)?;
        let log = fs::File::create(pool.at("log"))?;
        let program = Path::new(context.containerd.bin_dir()).join("containerd");
        let mut containerd = Command::new(program);
        containerd.args(["--config", &pool.at("config.toml")]);
        containerd.env(NO_UDEV.0, NO_UDEV.1);
        containerd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = containerd.spawn().context("start containerd")?;
        let started = Self { child, address: pool.at("containerd.sock"), context };
        let answers = || {
            let plugins = started.ctr(&["--connect-timeout", "1s", "plugins", "ls"])?.text();
            let line = plugins.lines().find(|line| line.contains("devmapper")).map(str::to_owned);
            Ok(line.is_some_and(|line| line.trim_end().ends_with("ok")))
        };
        command::eventually("a containerd with a devmapper snapshotter", DEADLINE, answers)
            .with_context(|| fs::read_to_string(pool.at("log")).unwrap_or_default())?;
        Ok(started)
    }

    fn ctr(&self, words: &[&str]) -> Result<Output> {
        let mut ctr = Command::new(Path::new(self.context.containerd.bin_dir()).join("ctr"));
        command::output(ctr.arg("--address").arg(&self.address).args(words))
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn a_root_on_a_thin_device_is_written_and_committed(context: &Context) -> Result<()> {
    let pool = Pool::new(context)?;
    let containerd = Containerd::start(context, &pool)?;
    let ctr = |words: &[&str]| containerd.ctr(words)?.expect_code(0).map(|output| output.text());
    ctr(&["images", "import", "--no-unpack", IMAGE_ARCHIVE])?;
    let id = context.fresh_id();
    let script = "grep ' / ' /proc/mounts; cat /kept; echo kept > /kept";
    let container =
        ["run", "--runtime", &context.runtime, SNAPSHOTTER, IMAGE, &id, "sh", "-c", script];
    let said = ctr(&container)?;
    ensure!(said.contains(" / ext4 rw"), "{said}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains("/dev/mapper/"), "the host has mounted it: {mounts}");
    let snapshots = |words: &[&str]| ctr(&[&["snapshots", SNAPSHOTTER], words].concat());
    snapshots(&["commit", "committed", &id])?;
    snapshots(&["prepare", "next", "committed"])?;
    let mount = snapshots(&["mounts", "/mnt", "next"])?;
    let device = mount.split_whitespace().find(|word| word.starts_with("/dev/mapper/"));
    let Some(device) = device else { bail!("the next one is {mount:?}") };
    let kept = run(&["debugfs", "-R", "cat /kept", device])?;
    ensure!(kept == "kept", "the next one has {kept:?}");
    ctr(&["container", "delete", "--keep-snapshot", &id]).map(drop)
}
