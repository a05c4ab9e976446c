//! Block devices and disk images of the host: the guest gets them as disks, and mounts them itself.

use crate::bundle::{Bundle, config};
use crate::command::{self, Output};
use crate::context::Context;
use crate::task_api::{root, run_beside, shim};
use crate::update::{CGROUP, update};
use anyhow::{Context as _, Result, bail};
use nix::libc;
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

crate::cases!(
    crate::Scope::OneOrEach;
    a_block_rootfs_is_mounted_in_the_guest,
    a_block_rootfs_is_committed;
    crate::Scope::Once;
    an_image_is_mounted_in_the_guest_and_clean_afterwards,
    an_image_in_use_is_refused_by_name,
    a_block_device_is_the_containers_and_no_other,
    by_command_line_they_are_as_on_runc;
    crate::Scope::AllOnce;
    an_erofs_image_is_read_only,
    what_can_not_be_a_disk_is_named,
    a_bound_device_is_a_disk_too,
    all_slots_are_used_and_used_again,
    its_rates_are_limited,
    roots_come_and_go_while_the_machine_lives,
);

/// A file of the host's that is removed in the end.
pub struct Image(PathBuf);

impl Image {
    /// Makes it with `command FLAGS PATH SIZE…`.
    fn made(context: &Context, command: &[&str], after: &[&str]) -> Result<Self> {
        let image = Self(format!("/tmp/{}.img", context.fresh_id()).into());
        let mut make = Command::new(command[0]);
        command::output(make.args(&command[1..]).arg(&image.0).args(after))?.expect_code(0)?;
        Ok(image)
    }

    pub fn ext4(context: &Context) -> Result<Self> {
        Self::made(context, &["mke2fs", "-q", "-t", "ext4"], &["16M"])
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    fn mount(&self, kind: &str, to: &str, options: &str) -> String {
        format!("--mount=type={kind},src={},dst={to},options={options}", self.path())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A loop device over an image; gone in the end.
pub struct LoopDevice {
    pub path: String,
    _image: Image,
}

impl LoopDevice {
    pub fn new(image: Image) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        let path = command::output(losetup.args(["--find", "--show", image.path()]))?;
        Ok(Self { path: path.expect_code(0)?.text(), _image: image })
    }

    /// `MAJOR:MINOR`.
    pub fn numbers(&self) -> Result<String> {
        let numbers = tool(&["lsblk", "--noheadings", "--nodeps", "--output=MAJ:MIN", &self.path])?;
        Ok(numbers.expect_code(0)?.text().trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

/// What a tool of e2fsprogs says about an image.
fn tool(words: &[&str]) -> Result<Output> {
    command::output(Command::new(words[0]).args(&words[1..]))
}

fn an_image_is_mounted_in_the_guest_and_clean_afterwards(context: &Context) -> Result<()> {
    let image = Image::ext4(context)?;
    let run = context.container().flag(image.mount("ext4", "/data", "rw:noatime"));
    let script =
        "grep ' /data ' /proc/mounts && echo from the guest > /data/file && stat -f -c %T /data";
    let said = run.output(&["sh", "-c", script])?.expect_code(0)?.text();
    let mount = said.lines().next().unwrap_or_default();
    if !mount.contains(" ext4 rw,") || !mount.contains("noatime") {
        bail!("the guest has mounted {said:?}");
    }
    tool(&["e2fsck", "-f", "-n", image.path()])?.expect_code(0)?;
    let features = tool(&["dumpe2fs", "-h", image.path()])?.expect_code(0)?.text();
    if features.contains("needs_recovery") {
        bail!("the file system was not unmounted: {features}");
    }
    let read = tool(&["debugfs", "-R", "cat /file", image.path()])?.expect_code(0)?.text();
    if read != "from the guest" {
        bail!("the image holds {read:?}");
    }
    // And the next container sees it; the host has never mounted it.
    let run = context.container().flag(image.mount("ext4", "/data", "ro"));
    let said = run.output(&["sh", "-c", "cat /data/file; echo x > /data/new"])?;
    if said.code == 0 || said.text() != "from the guest" {
        bail!("read-only: {} {:?}", said.code, said.text());
    }
    Ok(())
}

fn an_image_in_use_is_refused_by_name(context: &Context) -> Result<()> {
    let image = Image::ext4(context)?;
    let first = context.container().flag(image.mount("ext4", "/data", "rw"));
    let first = first.detached(&["sleep", "1000000"])?;
    let second = context.container().flag(image.mount("ext4", "/data", "ro"));
    second.output(&["true"])?.expect_error(&[image.path(), "in use"])?;
    first.remove()?;
    let third = context.container().flag(image.mount("ext4", "/data", "rw"));
    third.output(&["true"])?.expect_code(0)?;
    let device = LoopDevice::new(image)?;
    let mounted = format!("/tmp/{}", context.fresh_id());
    fs::create_dir(&mounted)?;
    tool(&["mount", &device.path, &mounted])?.expect_code(0)?;
    let mount = format!("--mount=type=ext4,src={},dst=/data,options=rw", device.path);
    let refused = context.container().flag(mount).output(&["true"]);
    tool(&["umount", &mounted])?.expect_code(0)?;
    fs::remove_dir(&mounted)?;
    refused?.expect_error(&[&device.path, "in use"]).map(drop)
}

fn an_erofs_image_is_read_only(context: &Context) -> Result<()> {
    let directory = format!("/tmp/{}", context.fresh_id());
    fs::create_dir(&directory)?;
    fs::write(format!("{directory}/file"), "packed")?;
    let image = Image::made(context, &["mkfs.erofs", "-zlz4"], &[&directory]);
    fs::remove_dir_all(&directory)?;
    let image = image?;
    // Two machines may read it at once.
    let first = context.container().flag(image.mount("erofs", "/data", "ro"));
    let first = first.detached(&["sleep", "1000000"])?;
    let second = context.container().flag(image.mount("erofs", "/data", "ro:nosuid"));
    let script =
        "cat /data/file; grep ' /data erofs ro,nosuid' /proc/mounts || exit 3; echo x > /data/x";
    let said = second.output(&["sh", "-c", script])?;
    if said.code != 1 || !said.text().starts_with("packed") {
        bail!("{} {:?} {:?}", said.code, said.text(), said.stderr);
    }
    first.remove()
}

fn a_block_device_is_the_containers_and_no_other(context: &Context) -> Result<()> {
    let image = Image::made(context, &["truncate", "--size=1M"], &[])?;
    fs::File::options().write(true).open(&image.0)?.write_all(b"first sector")?;
    let device = LoopDevice::new(image)?;
    let script = format!(
        "head -c 12 {0}; echo; blockdev --getsize64 {0}; echo written | dd of={0} bs=512 seek=1 conv=fsync",
        device.path
    );
    let run = context.container().flag(format!("--device={}", device.path));
    let said = run.output(&["sh", "-c", &script])?.expect_code(0)?.text();
    if said != "first sector\n1048576" {
        bail!("the container read {said:?}");
    }
    let host = fs::read(&device.path)?;
    if !host[512..].starts_with(b"written") {
        bail!("the host reads {:?}", String::from_utf8_lossy(&host[512..528]));
    }
    // What the guest has mounted is no device of the container's, whatever node it makes.
    let image = Image::ext4(context)?;
    let run = context.container().flag(image.mount("ext4", "/data", "rw"));
    let script =
        "read -r n < /sys/class/block/vda/dev; mknod /disk b ${n%:*} ${n#*:}; head -c 1 /disk";
    run.output(&["sh", "-c", script])?.expect_code(1)?.expect_stderr("not permitted").map(drop)
}

/// As with runc, the node alone is no leave to use it: the rules give it.
fn a_bound_device_is_a_disk_too(context: &Context) -> Result<()> {
    let device = LoopDevice::new(Image::made(context, &["truncate", "--size=1M"], &[])?)?;
    let mount = format!("--mount=type=bind,src={},dst=/dev/xvda,options=rbind:rw", device.path);
    let script = "test -b /dev/xvda && head -c 1 /dev/xvda";
    let run = context.container().flag(&mount);
    run.output(&["sh", "-c", script])?.expect_code(1)?.expect_stderr("not permitted")?;
    let run = context.container().flag(mount).flag(format!("--device={}", device.path));
    let script = format!("{script} && cmp /dev/xvda {}", device.path);
    run.output(&["sh", "-c", &script])?.expect_code(0).map(drop)
}

fn what_can_not_be_a_disk_is_named(context: &Context) -> Result<()> {
    let odd = Image::made(context, &["truncate", "--size=1000"], &[])?;
    let run = context.container().flag(odd.mount("ext4", "/data", "rw"));
    run.output(&["true"])?.expect_error(&[odd.path(), "1000 bytes"])?;
    let empty = Image::made(context, &["truncate", "--size=1M"], &[])?;
    let run = context.container().flag(empty.mount("ext4", "/data", "rw"));
    run.output(&["true"])?.expect_error(&["mounting", "ext4"])?;
    let device = LoopDevice::new(empty)?;
    let mount = format!("--mount=type=xfs,src={},dst=/data,options=rw", device.path);
    context.container().flag(mount).output(&["true"])?.expect_error(&["/data", "xfs"]).map(drop)
}

fn a_block_rootfs_is_mounted_in_the_guest(context: &Context) -> Result<()> {
    let run = || context.container().flag("--snapshotter=blockfile");
    let script = "grep ' / ' /proc/mounts; echo kept > /kept; cat /kept; ls -d /lost+found";
    let said = run().output(&["sh", "-c", script])?.expect_code(0)?.text();
    if !said.contains(" / ext4 rw") || !said.contains("kept") || !said.contains("lost+found") {
        bail!("the root is {said:?}");
    }
    let container = run().detached(&["sleep", "1000000"])?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let loops = tool(&["losetup", "--list", "--noheadings"])?.expect_code(0)?.text();
    if mounts.contains("blockfile") || !loops.is_empty() {
        bail!("the host has mounted it: {mounts} {loops}");
    }
    container.exec(&["sh", "-c", "echo more >> /kept && sync"])?.expect_code(0)?;
    container.remove()
}

/// What was written is in what the next container begins with.
fn a_block_rootfs_is_committed(context: &Context) -> Result<()> {
    let snapshots = |words: &[&str]| {
        let all = [&["snapshots", "--snapshotter=blockfile"], words].concat();
        context.ctr(&all)?.expect_code(0).map(|output| output.text())
    };
    let run = context.container().flag("--snapshotter=blockfile");
    let container = run.detached(&["sh", "-c", "echo kept > /kept; sleep 1000000"])?;
    container.await_file("/kept")?;
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    container.delete_task()?;
    let [committed, next] = ["committed", "next"].map(|name| format!("{}-{name}", container.id));
    snapshots(&["commit", &committed, &container.id])?;
    snapshots(&["prepare", &next, &committed])?;
    let mount = snapshots(&["mounts", "/mnt", &next])?;
    let file = mount.split_whitespace().find(|word| word.contains("/snapshots/"));
    let file = file.with_context(|| format!("the next one is {mount:?}"))?;
    let kept = tool(&["debugfs", "-R", "cat /kept", file])?.expect_code(0)?.text();
    snapshots(&["rm", &next])?;
    snapshots(&["rm", &committed])?;
    context.ctr(&["container", "delete", "--keep-snapshot", &container.id])?.expect_code(0)?;
    if kept != "kept" {
        bail!("the next one has {kept:?}");
    }
    Ok(())
}

fn all_slots_are_used_and_used_again(context: &Context) -> Result<()> {
    let images = (0..9).map(|_| Image::ext4(context)).collect::<Result<Vec<_>>>()?;
    let with = |count: usize| {
        let mounts = images.iter().take(count).enumerate();
        mounts.fold(context.container(), |run, (index, image)| {
            run.flag(image.mount("ext4", &format!("/data{index}"), "rw"))
        })
    };
    let script = "for n in 0 1 2 3 4 5 6 7; do echo $n > /data$n/n && sync || exit 1; done; \
        cat /data*/n | tr -d '\\n'";
    let said = with(8).output(&["sh", "-c", script])?.expect_code(0)?.text();
    if said != "01234567" {
        bail!("eight disks: {said:?}");
    }
    with(9).output(&["true"])?.expect_error(&["8 slots for disks"])?;
    Ok(())
}

/// From a container's own cgroup: the guest's number of the disk, which the host's became.
fn its_rates_are_limited(context: &Context) -> Result<()> {
    let device = LoopDevice::new(Image::ext4(context)?)?;
    let numbers = device.numbers()?;
    let mount = format!("--mount=type=ext4,src={},dst=/data,options=rw", device.path);
    let container = context.container().flag(mount).flag(CGROUP).detached(&["sleep", "1000000"])?;
    let (major, minor) = numbers.split_once(':').context("MAJ:MIN")?;
    let resources = |major: &str, minor: &str| {
        format!(
            r#"{{"blockIO": {{"throttleWriteBpsDevice":
                [{{"major": {major}, "minor": {minor}, "rate": 1048576}}]}}}}"#
        )
    };
    update(context, &container, &resources(major, minor))?;
    let show = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/io.max";
    let limits = container.exec(&["sh", "-c", show])?.expect_code(0)?.text();
    if !limits.contains("wbps=1048576") || limits.starts_with(&numbers) {
        bail!("{numbers} became {limits:?}");
    }
    // Not one more loop device, which a host that is asked for it makes.
    match update(context, &container, &resources("8", "1048575")) {
        Err(e) if format!("{e:#}").contains("io.max: 8:1048575") => {}
        other => bail!("a limit for what is no disk: {other:?}"),
    }
    container.remove()
}

fn by_command_line_they_are_as_on_runc(context: &Context) -> Result<()> {
    let content = format!("/tmp/{}", context.fresh_id());
    fs::create_dir(&content)?;
    fs::write(format!("{content}/file"), "on the disk\n")?;
    let image = Image::made(context, &["mke2fs", "-q", "-t", "ext4", "-d", &content], &["16M"]);
    fs::remove_dir_all(&content)?;
    let mounted = LoopDevice::new(image?)?;
    let raw = Image::made(context, &["truncate", "--size=1M"], &[])?;
    fs::File::options().write(true).open(&raw.0)?.write_all(b"first sector")?;
    let raw = LoopDevice::new(raw)?;
    let rdev = fs::metadata(&raw.path)?.rdev();
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let script = "cat /data/file && echo new > /data/new; grep ' /data ' /proc/mounts | cut -d ' ' -f 2-3; \
        stat -c '%F %a %u:%g' /dev/disk; head -c 12 /dev/disk; echo x > /dev/disk";
    let mut spec = config(&["sh", "-c", script]);
    let mount =
        json!({"destination": "/data", "type": "ext4", "source": mounted.path, "options": ["ro"]});
    spec["mounts"].as_array_mut().context("mounts")?.push(mount);
    spec["linux"]["devices"] = json!([{"path": "/dev/disk", "type": "b", "major": major, "minor": minor,
        "fileMode": 0o640, "uid": 0, "gid": 8}]);
    spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}]});
    let bundle = Bundle::new(context, &[])?;
    bundle.write_config(&spec)?;
    let (host, guest) = (bundle.run_on_the_host("runc")?, bundle.run()?);
    if host.text() != guest.text()
        || !guest.text().contains("first sector")
        || host.code != guest.code
    {
        bail!("on runc: {host:?}\nours: {guest:?}");
    }
    Ok(())
}

/// More containers one after another than there are slots, in a machine that lives on. The roots are the mounts that
/// snapshotters give of an EROFS image and of a device (as devmapper does), which `ctr` can't, so the shim is called
/// as containerd does.
fn roots_come_and_go_while_the_machine_lives(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let content = bundle.0.join("rootfs").display().to_string();
    let image = Image::made(context, &["mkfs.erofs"], &[&content])?;
    let device = Image::made(context, &["mke2fs", "-q", "-t", "ext4", "-d", &content], &["32M"])?;
    let device = LoopDevice::new(device)?;
    let roots = [
        ("erofs", image.path(), &["ro", "loop"][..], "/ erofs ro", "! touch /new"),
        ("ext4", &device.path, &[][..], "/ ext4 rw", "echo x >> /new"),
    ];
    let sleeper = context.sleeper()?;
    let shim = shim(context, &sleeper)?;
    for round in 0..12 {
        let (fstype, source, options, mounted, also) = roots[round % 2];
        let script = format!("grep -q '^[^ ]* {mounted}' /proc/mounts && {also}");
        let mut spec = config(&["sh", "-c", &script]);
        let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"});
        spec["mounts"].as_array_mut().context("mounts")?.push(dev);
        bundle.write_config(&spec)?;
        let id = format!("{}-{round}", sleeper.id);
        let rootfs = root(fstype, source, options);
        let status = run_beside(&shim, &id, &bundle, rootfs)?;
        if status != 0 {
            bail!("round {round} ended with {status}");
        }
    }
    let kept = tool(&["debugfs", "-R", "cat /new", &device.path])?.expect_code(0)?.text();
    if kept.lines().count() != 6 {
        bail!("of six rounds the device holds {kept:?}");
    }
    let left = sleeper.exec(&["cat", "/proc/partitions"])?.expect_code(0)?.text();
    if left.contains("vd") {
        bail!("the guest still has {left}");
    }
    sleeper.remove()
}
