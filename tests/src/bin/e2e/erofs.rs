//! containerd's EROFS snapshotter: layers that its guest has as disks, and what is written on one more.

use crate::bundle::{Bundle, config};
use crate::command::{self, Output, Running};
use crate::context::{Container, Context};
use crate::inside;
use crate::odd_files::{content, same};
use crate::pods::pod::{Pod, crictl};
use crate::task_api::{root, run_on, shim};
use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::Mount;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice::from_ref;
use std::time::Duration;

crate::cases!(
    crate::Scope::Newest;
    what_is_written_stays_and_is_committed;
    crate::Scope::AllNewest;
    layers_look_as_on_runc,
    what_can_not_be_a_root_is_named,
    what_is_written_goes_with_its_disk_where_that_is_asked_for,
    a_pod_is_on_layers,
    as_many_layers_as_there_can_be,
);

const SNAPSHOTTER: &str = "--snapshotter=erofs";

/// An image of [`content::IMAGE_LAYERS`] layers above busybox.
const LAYERED: &str = "layered:lab";

/// Several times what the lab needs for it when it is idle.
const PATIENCE: Duration = Duration::from_secs(240);

/// Where the snapshotter keeps its snapshots, by numbers.
fn snapshots(context: &Context) -> PathBuf {
    let root = PathBuf::from(context.containerd.root());
    root.join("io.containerd.snapshotter.v1.erofs/snapshots")
}

/// `ctr snapshots`, of this snapshotter.
fn ctr_snapshots(context: &Context, words: &[&str]) -> Result<Output> {
    context.ctr(&[&["snapshots", SNAPSHOTTER], words].concat())
}

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(context: &Context) -> Result<Self> {
        let directory = Self(PathBuf::from(format!("/var/tmp/{}", context.fresh_id())));
        fs::create_dir(&directory.0)?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Result<Output> {
    command::output(command)?.expect_code(0)
}

/// Imports [`LAYERED`], unless it is there.
fn import_layered(context: &Context) -> Result<()> {
    let images = context.ctr(&["images", "ls", "-q"])?.expect_code(0)?.text();
    if images.lines().any(|name| name == LAYERED) {
        return Ok(());
    }
    let (bundle, work) = (Bundle::new(context, &[])?, Directory::new(context)?);
    let mut folders = vec![bundle.0.join("rootfs")];
    folders.extend(content::image_layers(&work.0)?);
    let mut layers = Vec::new();
    for (n, folder) in folders.iter().enumerate() {
        let layer = work.0.join(format!("{n}.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"]);
        run(tar.arg(folder).arg("-cf").arg(&layer).arg("."))?;
        layers.push(layer);
    }
    let images = [(LAYERED, json!({"Env": ["PATH=/bin"]}))];
    let (layout, archive) = (work.0.join("layout"), work.0.join("layered.tar"));
    lab::image::write_layout(&layout, &layers, &images)?;
    lab::image::tar(&layout, &archive)?;
    let archive = archive.display().to_string();
    let mut import = context.ctr_command(&["images", "import", "--no-unpack", &archive]);
    Running::start(&mut import, Vec::new())?.finish(PATIENCE)?.expect_code(0).map(drop)
}

fn layers_look_as_on_runc(context: &Context) -> Result<()> {
    import_layered(context)?;
    let own = std::env::current_exe()?;
    let own = format!("--mount=type=bind,src={},dst=/list,options=bind:ro", own.display());
    let top = [
        "bin",
        "changed",
        "names",
        "kinds",
        "modes",
        "owners",
        "times",
        "attributes",
        "layers",
        "top",
    ];
    let top = top.map(|name| format!("/{name}"));
    let said = |runtime: &str| {
        let mut run =
            context.ctr_command(&["run", "--rm", "--runtime", runtime, SNAPSHOTTER, &own]);
        run.args([LAYERED, &context.fresh_id(), "/list", inside::FLAG, "list"]).args(&top);
        let output = Running::start(&mut run, Vec::new())?.finish(PATIENCE)?;
        Ok::<_, anyhow::Error>(output.expect_code(0)?.text())
    };
    let theirs = said("io.containerd.runc.v2");
    // It leaves the cgroup above its own.
    let _ = fs::remove_dir("/sys/fs/cgroup/default");
    let (theirs, ours) = (theirs?, said(&context.runtime)?);
    same(&theirs, &ours)?;
    let names = |name: &str| ours.lines().any(|line| line.starts_with(name));
    ensure!(names("/changed/opaque/seen ") && !names("/changed/opaque/hidden"), "{ours}");
    ensure!(!names("/changed/gone") && !names("/changed/hidden"), "{ours}");
    ensure!(ours.contains("security.capability=") && ours.contains(" is /kinds/one"), "{ours}");
    ensure!(names(&format!("/layers/{} ", content::IMAGE_LAYERS - 1)), "{ours}");
    Ok(())
}

/// Nothing of an image is mounted on the host, nor any part of it given to a loop device.
fn ensure_unmounted() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let loops = run(Command::new("losetup").args(["--list", "--noheadings"]))?.text();
    ensure!(
        !mounts.contains("erofs") && loops.is_empty(),
        "the host has mounted it: {mounts} {loops}"
    );
    Ok(())
}

fn what_is_written_stays_and_is_committed(context: &Context) -> Result<()> {
    let begin = || {
        let run = context.container().flag(SNAPSHOTTER);
        run.detached(&["sh", "-c", "cat /kept 2>/dev/null; sleep 1000000"])
    };
    let (container, other) = (begin()?, begin()?);
    ensure_unmounted()?;
    let write = "echo kept > /kept && echo new > /etc/passwd && rm /bin/yes && rm -r /tmp && mkdir /tmp
        chmod 751 / && stat -c %a / && grep ' / ' /proc/mounts && dd if=/dev/zero of=/large bs=1000000 count=30 2> /dev/null && rm /large";
    let said = container.exec(&["sh", "-c", write])?.expect_code(0)?.text();
    ensure!(said.starts_with("751\noverlay / overlay rw"), "{said}");
    let look = "cat /kept; cat /etc/passwd; ls /bin/yes; stat -c %a /";
    let unchanged = other.exec(&["sh", "-c", look])?;
    ensure!(unchanged.text() == "root:x:0:0:root:/root:/bin/sh\n/bin/yes\n755", "{unchanged:?}");
    other.remove()?;
    // Its task ends, and another begins: the snapshot is the same.
    let id = container.id.clone();
    end_task(&container)?;
    let again = context.ctr(&["task", "start", "--detach", &id])?;
    again.expect_code(0)?;
    let said = container.exec(&["sh", "-c", look])?.text();
    ensure!(said == "kept\nnew\n751", "{said}");
    end_task(&container)?;
    ensure_unmounted()?;
    // As containerd commits: from the disk that the guest has let go of.
    let before = layers(context)?;
    let name = format!("{id}-committed");
    ctr_snapshots(context, &["commit", &name, &id])?.expect_code(0)?;
    let committed: Vec<_> =
        layers(context)?.into_iter().filter(|path| !before.contains(path)).collect();
    let outcome = look_into(context, &committed);
    ctr_snapshots(context, &["rm", &name])?.expect_code(0)?;
    context.ctr(&["container", "delete", "--keep-snapshot", &id])?.expect_code(0)?;
    outcome
}

fn end_task(container: &Container) -> Result<()> {
    container.kill("KILL")?.expect_code(0)?;
    container.await_status("STOPPED")?;
    container.delete_task().map(drop)
}

/// The images that the snapshotter has of layers.
fn layers(context: &Context) -> Result<Vec<PathBuf>> {
    let snapshots = fs::read_dir(snapshots(context))?;
    let layers = snapshots.map(|entry| Ok(entry?.path().join("layer.erofs")));
    Ok(layers.collect::<Result<Vec<_>>>()?.into_iter().filter(|path| path.exists()).collect())
}

/// What the container has written, replaced and removed is in the layer that was made of it.
fn look_into(context: &Context, committed: &[PathBuf]) -> Result<()> {
    let [layer] = committed else { bail!("committed as {committed:?}") };
    let at = Directory::new(context)?;
    run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(layer).arg(&at.0))?;
    let script = "cat kept etc/passwd && stat -c '%F %t:%T' bin/yes && stat -c '%a' . && ls";
    let seen = command::output(Command::new("sh").args(["-c", script]).current_dir(&at.0));
    run(Command::new("umount").arg(&at.0))?;
    let seen = seen?.expect_code(0)?.text();
    let expected = "kept\nnew\ncharacter special file 0:0\n751\nbin\netc\nkept\ntmp";
    // Where a directory was made for a mount it is written, too.
    let seen: Vec<_> =
        seen.lines().filter(|line| !["dev", "proc", "run", "sys"].contains(line)).collect();
    ensure!(seen.join("\n") == expected, "the layer holds {seen:?}");
    Ok(())
}

fn what_is_written_goes_with_its_disk_where_that_is_asked_for(context: &Context) -> Result<()> {
    let file = format!("/tmp/{}.toml", context.fresh_id());
    fs::write(&file, "[root]\nwrites = \"disk\"\ndisk_mib = 64\n")?;
    let run = context.container().flag(SNAPSHOTTER).flag("--runtime-config-path").flag(&file);
    let container = run.detached(&["sleep", "1000000"]);
    let outcome = container.and_then(|container| {
        container.exec(&["sh", "-c", "echo x > /written && sync"])?.expect_code(0)?;
        end_task(&container)?;
        context.ctr(&["task", "start", "--detach", &container.id])?.expect_code(0)?;
        container.exec(&["test", "-e", "/written"])?.expect_code(1)?;
        container.remove()
    });
    fs::remove_file(file)?;
    outcome?;
    let run = || context.container().flag(SNAPSHOTTER).flag("--read-only");
    run().output(&["sh", "-c", "ls /bin/yes && ! touch /new"])?.expect_code(0).map(drop)
}

/// With a pause container, whose root nobody writes to: as many disks as there is room for, of the handler's settings.
fn a_pod_is_on_layers(context: &Context) -> Result<()> {
    let pod = Pod::run(context, "kata-like-erofs", &json!({}))?;
    let read_only = json!({"linux": {"security_context": {"readonly_rootfs": true}}});
    // The pause container and the network have a slot each of fourteen, these two.
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(pod.sleeper()?);
    }
    members.push(pod.start(&["sleep", "1000000"], &read_only)?);
    ensure_unmounted()?;
    let last = members.len() - 1;
    for (n, member) in members.iter().enumerate() {
        let said = member.sh(
            "cat /written; echo 1 > /written; cat /written; grep -c ' / overlay ' /proc/mounts",
        )?;
        ensure!(said == if n == last { "1" } else { "1\n1" }, "{n}: {said}");
    }
    // One slot is left, and is after this.
    let one_too_many = pod.create("one-too-many", &["true"], &json!({}))?.expect_code(0)?.text();
    let words = ["14 slots for disks and network interfaces", "machine.max_disks"];
    crictl(context, &["start", &one_too_many])?.expect_error(&words)?;
    pod.start(&["sleep", "1000000"], &read_only)?.sh("ls /bin/yes")?;
    pod.remove()
}

/// An EROFS image of a folder.
fn image(directory: &Directory, name: &str, folder: &Path) -> Result<String> {
    let path = directory.0.join(name).display().to_string();
    run(Command::new("mkfs.erofs").args(["--quiet", "-Enoinline_data", &path]).arg(folder))?;
    Ok(path)
}

/// The snapshotter's mounts of these layers, the top one first, and of a disk above them, if any.
fn mounts(layers: &[String], disk: Option<&str>, options: &[&str]) -> Vec<Mount> {
    let first = usize::from(disk.is_some());
    let lower = format!("lowerdir={{{{ overlay {first} {} }}}}", first + layers.len() - 1);
    let upper = ["workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"];
    let upper = if disk.is_some() { &upper[..] } else { &[] };
    let disk = disk.map(|disk| root("ext4", disk, &["rw", "loop"]));
    let layers = layers.iter().map(|layer| root("erofs", layer, &["ro", "loop"]));
    let overlay = root("format/mkdir/overlay", "overlay", &[upper, &[&lower], options].concat());
    disk.into_iter().chain(layers).chain([overlay]).collect()
}

fn disk(directory: &Directory) -> Result<String> {
    let path = directory.0.join("rwlayer.img").display().to_string();
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", &path, "16M"]))?;
    Ok(path)
}

fn as_many_layers_as_there_can_be(context: &Context) -> Result<()> {
    let (bundle, at, sleeper) =
        (Bundle::new(context, &[])?, Directory::new(context)?, context.sleeper()?);
    let base = image(&at, "base", &bundle.0.join("rootfs"))?;
    let folder = at.0.join("folder");
    fs::create_dir_all(folder.join("layers"))?;
    let mut layers = vec![base];
    for n in 1..128 {
        fs::write(folder.join("top"), n.to_string())?;
        fs::write(folder.join("layers/own"), "")?;
        fs::rename(folder.join("layers/own"), folder.join(format!("layers/{n}")))?;
        layers.insert(0, image(&at, &n.to_string(), &folder)?);
        fs::remove_file(folder.join(format!("layers/{n}")))?;
    }
    let script = "test $(ls /layers | wc -l) = 127 && test $(cat /top) = 127 && ! test -e /new && echo x > /new";
    let mut spec = config(&["sh", "-c", script]);
    let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"].as_array_mut().context("mounts")?.push(dev);
    bundle.write_config(&spec)?;
    let disk = disk(&at)?;
    let shim = shim(context, &sleeper)?;
    let status =
        run_on(&shim, &format!("{}-most", sleeper.id), &bundle, mounts(&layers, Some(&disk), &[]))?;
    ensure!(status == 0, "it ended with {status}");
    // What was written is on the disk, which the guest has let go of though it lives on.
    let read = run(Command::new("debugfs").args(["-R", "cat /upper/new", &disk]))?.text();
    ensure!(read == "x", "{read:?}");
    run(Command::new("e2fsck").args(["-f", "-n", &disk]))?;
    layers.push(layers[0].clone());
    let id = format!("{}-more", sleeper.id);
    let refused = run_on(&shim, &id, &bundle, mounts(&layers, Some(&disk), &[]));
    match refused {
        Err(e) if format!("{e:#}").contains("129 files") => {}
        other => bail!("129 layers: {other:?}"),
    }
    sleeper.remove()
}

fn what_can_not_be_a_root_is_named(context: &Context) -> Result<()> {
    let (bundle, at, sleeper) =
        (Bundle::new(context, &["true"])?, Directory::new(context)?, context.sleeper()?);
    let whole = image(&at, "whole", &bundle.0.join("rootfs"))?;
    let cut = at.0.join("cut");
    fs::copy(&whole, &cut)?;
    fs::File::options().write(true).open(&cut)?.set_len(64 << 10)?;
    let other = at.0.join("other");
    fs::write(&other, [0; 8192])?;
    let [cut, other, gone] = [cut, other, at.0.join("gone")].map(|path| path.display().to_string());
    let disk = disk(&at)?;
    let shim = shim(context, &sleeper)?;
    let of = |layer: &String| mounts(&[layer.clone(), whole.clone()], Some(&disk), &[]);
    let in_host = ["workdir=/var/tmp/work", "upperdir=/var/tmp/upper"];
    for (n, (rootfs, words)) in [
        (of(&gone), &["/gone", "No such file"][..]),
        (of(&cut), &["was cut: it has 65536 of"]),
        (of(&other), &["no EROFS image"]),
        (mounts(from_ref(&whole), Some(&disk), &["uidmap=0:65536:65536"]), &["users of its own"]),
        (mounts(from_ref(&whole), Some(&disk), &["nosuch=1"]), &["nosuch=1"]),
        (mounts(from_ref(&whole), None, &in_host), &["/var/tmp/upper", "default_size"]),
    ]
    .into_iter()
    .enumerate()
    {
        match run_on(&shim, &format!("{}-{n}", sleeper.id), &bundle, rootfs) {
            Err(e) if words.iter().all(|word| format!("{e:#}").contains(word)) => {}
            other => bail!("{words:?}: {other:?}"),
        }
    }
    let left = sleeper.exec(&["cat", "/proc/partitions"])?.expect_code(0)?.text();
    ensure!(!left.contains("vd"), "the guest still has {left}");
    sleeper.remove()
}
