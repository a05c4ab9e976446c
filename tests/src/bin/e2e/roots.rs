//! What the configuration says about root file systems.

use crate::bundle::{Bundle, config};
use crate::command::{self, Output};
use crate::context::Context;
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

crate::cases!(
    crate::Scope::OneOrEach;
    what_is_written_goes_to_a_disk_of_the_guests;
    crate::Scope::Once;
    a_shared_root_is_looked_at_again_after_a_second,
    a_full_disk_of_the_hosts_is_told_when_a_file_is_synced_or_closed,
    the_host_has_what_is_written_when_it_looks;
    crate::Scope::AllOnce;
    a_disk_that_can_not_be_made_is_an_error,
    a_directory_is_as_it_was_after_writes_to_a_disk,
    what_is_deleted_on_a_disk_goes_back_to_the_host,
    what_the_guest_opens_by_itself_is_as_it_was_left,
);

/// A configuration file; gone when dropped.
struct Configuration(String);

impl Configuration {
    fn new(context: &Context, text: &str) -> Result<Self> {
        let file = Self(format!("/tmp/{}.toml", context.fresh_id()));
        fs::write(&file.0, text)?;
        Ok(file)
    }

    fn kata_like(&self, words: &[&str]) -> Result<Output> {
        command::output(Command::new("/usr/bin/kata-like").args(["--config", &self.0]).args(words))
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

const ON_DISK: &str = "[root]\nwrites = \"disk\"\ndisk_mib = 64\n";

/// What the image has can be changed, removed and replaced, and there is as much room as was said.
const CHANGES: &str =
    "stat -f -c %T /; echo new > /etc/passwd; rm /bin/yes; mkdir /made; mv /etc /made/etc
    cat /made/etc/passwd; ls /bin/yes 2>/dev/null; ls -d /etc 2>/dev/null
    mkdir /etc && ls -A /etc; chmod 700 / && stat -c %a /
    dd if=/dev/zero of=/large bs=1000000 count=100 2>/dev/null || echo full; rm /large
    dd if=/dev/zero of=/fits bs=1000000 count=30 2>/dev/null && echo fits; sync; stat -c %s /fits";

/// What they print; an overlay calls itself so by a number that busybox does not know.
const CHANGED: &str = "new\n700\nfull\nfits\n30000000";

fn what_is_written_goes_to_a_disk_of_the_guests(context: &Context) -> Result<()> {
    let file = Configuration::new(context, ON_DISK)?;
    let run = context.container().flag("--runtime-config-path").flag(&file.0);
    let said = run.output(&["sh", "-c", CHANGES])?.expect_code(0)?.text();
    ensure!(said.ends_with(CHANGED), "{said:?}");
    let run = context.container().flag("--runtime-config-path").flag(&file.0).flag("--read-only");
    let said = run.output(&["sh", "-c", "echo x > /new || ls /etc/passwd"])?.expect_code(0)?.text();
    ensure!(said.ends_with("/etc/passwd"), "{said:?}");
    Ok(())
}

fn a_directory_is_as_it_was_after_writes_to_a_disk(context: &Context) -> Result<()> {
    let file = Configuration::new(context, ON_DISK)?;
    let bundle = Bundle::new(context, &[])?;
    let at = |path: &str| bundle.0.join("rootfs").join(path);
    fs::create_dir(at("etc"))?;
    fs::write(at("etc/passwd"), "old\n")?;
    let list = || command::output(Command::new("ls").arg("-lAR").arg(at("")));
    let before = list()?.text();
    let mut spec = config(&["sh", "-c", &format!("cat /same; {CHANGES}")]);
    // A source in the root is found where the guest has it.
    let source = at("etc/passwd");
    let same =
        json!({"destination": "/same", "type": "bind", "source": source, "options": ["bind"]});
    let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"]
        .as_array_mut()
        .into_iter()
        .for_each(|mounts| mounts.extend([dev.clone(), same.clone()]));
    bundle.write_config(&spec)?;
    let id = context.fresh_id();
    let path = bundle.0.display().to_string();
    let said = file.kata_like(&["run", "--bundle", &path, &id])?.expect_code(0)?.text();
    ensure!(said.starts_with("old\n") && said.ends_with(CHANGED), "{said:?}");
    let after = list()?.text();
    ensure!(before == after, "it was\n{before}\nand is\n{after}");
    Ok(())
}

/// What the disk of this size takes on the host, bytes: a file that some process has open.
fn taken(size: u64) -> Result<u64> {
    for process in fs::read_dir("/proc")?.flatten() {
        // Processes end meanwhile.
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        let meta = open.flatten().filter_map(|fd| fs::metadata(fd.path()).ok());
        if let Some(disk) = meta.into_iter().find(|meta| meta.is_file() && meta.len() == size) {
            return Ok(disk.blocks() * 512);
        }
    }
    bail!("no process has a file of {size} bytes open")
}

fn what_is_deleted_on_a_disk_goes_back_to_the_host(context: &Context) -> Result<()> {
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 777;
    let file =
        Configuration::new(context, &format!("[root]\nwrites = \"disk\"\ndisk_mib = {SIZE}\n"))?;
    let run = context.container().flag("--runtime-config-path").flag(&file.0);
    let container = run.detached(&["sleep", "1000000"])?;
    // What would fill the guest's memory with what is known of a disk that nobody uses.
    let options = container.exec(&["sh", "-c", "cat /proc/fs/ext4/vd*/options"])?.text();
    ensure!(options.lines().any(|line| line == "no_prefetch_block_bitmaps"), "{options}");
    let write =
        "dd if=/dev/zero of=/large bs=1048576 count=200 2> /dev/null && echo kept > /kept && sync";
    container.exec(&["sh", "-c", write])?.expect_code(0)?;
    let full = taken(SIZE * MIB)?;
    ensure!(full >= 200 * MIB, "200 MiB are written, and {full} bytes taken");
    container.exec(&["sh", "-c", "rm /large && sync"])?.expect_code(0)?;
    command::eventually("the host has it back", 3 * command::DEADLINE, || {
        Ok(taken(SIZE * MIB)? < 50 * MIB)
    })?;
    // And all is as it was for the container.
    let again = "cat /kept; dd if=/dev/zero of=/again bs=1048576 count=100 2> /dev/null && stat -c %s /again";
    let said = container.exec(&["sh", "-c", again])?.expect_code(0)?.text();
    ensure!(said == "kept\n104857600", "{said:?}");
    container.remove()
}

fn a_disk_that_can_not_be_made_is_an_error(context: &Context) -> Result<()> {
    let file = Configuration::new(context, "[root]\nwrites = \"disk\"\ndisk_mib = 1\n")?;
    let run = context.container().flag("--runtime-config-path").flag(&file.0);
    run.output(&["true"])?.expect_error(&["root.disk_mib", "16"])?;
    Ok(())
}

/// A container of the command's with its standard streams, until it is dropped.
struct Detached<'a> {
    file: &'a Configuration,
    id: String,
}

impl<'a> Detached<'a> {
    fn run(context: &Context, file: &'a Configuration, bundle: &Bundle) -> Result<Self> {
        let container = Self { file, id: context.fresh_id() };
        let path = bundle.0.display().to_string();
        // Its standard streams stay with the container.
        let mut run = Command::new("/usr/bin/kata-like");
        run.args(["--config", &file.0, "run", "--detach", "--bundle", &path, &container.id]);
        let status =
            run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "{status}");
        Ok(container)
    }

    fn command(&self, words: &[&str]) -> Result<String> {
        let (command, arguments) = words.split_first().unwrap_or((&"", &[]));
        let words = [&[*command, &self.id], arguments].concat();
        Ok(self.file.kata_like(&words)?.expect_code(0)?.text())
    }

    fn sh(&self, line: &str) -> Result<String> {
        self.command(&["exec", "sh", "-c", line])
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let _ = self.file.kata_like(&["delete", "--force", &self.id]);
    }
}

fn a_shared_root_is_looked_at_again_after_a_second(context: &Context) -> Result<()> {
    let file = Configuration::new(context, "[root]\nshared = true\n")?;
    let bundle = Bundle::new(context, &["sleep", "1000000"])?;
    let container = Detached::run(context, &file, &bundle)?;
    let look = || container.sh("cat /made 2>/dev/null || echo none");
    let first = look()?;
    fs::write(bundle.0.join("rootfs/made"), "by the host")?;
    std::thread::sleep(Duration::from_millis(1500));
    let second = look()?;
    if (first.as_str(), second.as_str()) != ("none", "by the host") {
        bail!("first {first:?}, then {second:?}");
    }
    Ok(())
}

/// What is closed, and what a container that stands still has open, or one that was killed had.
fn the_host_has_what_is_written_when_it_looks(context: &Context) -> Result<()> {
    let file = Configuration::new(context, "")?;
    let script = "echo closed > /closed; exec 3>> /open; i=0
        while [ $i -lt 1000 ]; do echo $i >&3; i=$((i+1)); done; touch /ready
        until [ -e /go ]; do sleep 0.1; done; echo last >&3; touch /over; sleep 1000000";
    let bundle = Bundle::new(context, &["sh", "-c", script])?;
    let at = |path: &str| bundle.0.join("rootfs").join(path);
    let said = |path: &str| fs::read_to_string(at(path)).map_err(anyhow::Error::from);
    let comes =
        |path: &str| command::eventually(path, command::DEADLINE, || Ok(fs::exists(at(path))?));
    let container = Detached::run(context, &file, &bundle)?;
    comes("ready")?;
    ensure!(said("closed")? == "closed\n");
    container.command(&["pause"])?;
    let numbers: String = (0..1000).map(|number| format!("{number}\n")).collect();
    ensure!(said("open")? == numbers, "{:?}", said("open")?.lines().last());
    container.command(&["resume"])?;
    // Another one adds to it, and sees what the first has written since.
    container.sh("echo other >> /open; touch /go; until [ -e /over ]; do sleep 0.1; done")?;
    let end = container.sh("tail -n 2 /open; wc -l < /open; stat -c %s /open")?;
    let size = numbers.len() + "other\nlast\n".len();
    ensure!(end == format!("other\nlast\n1002\n{size}"), "{end:?}");
    container.command(&["kill", "KILL"])?;
    command::eventually("the container has ended", command::DEADLINE, || {
        Ok(container.command(&["state"])?.contains("stopped"))
    })?;
    ensure!(said("open")? == format!("{numbers}other\nlast\n"));
    Ok(())
}

/// Files and directories that the guest opens without asking, as it goes on with them: directories that fit into an answer
/// and that do not, of the image's and made, listed while they change; files that are read while they are replaced, cut and
/// deleted.
const OPENED: &str = r#"count() { ls -A "$1" | wc -l; }
    mkdir /few /many && cd /many && i=0; while [ $i -lt 400 ]; do echo $i > f$i; i=$((i + 1)); done; cd /
    count /few; count /many; count /many; rm /many/f1?; mv /many/f2 /few/f2; echo > /few/f3
    count /few; count /many; count /few
    for d in few many; do exec 3< /$d; rm -r /$d; ls -d /$d 2>/dev/null; exec 3<&-; done
    cp /bin/busybox /busybox; echo > /bin/added; /busybox rm /bin/added; /busybox ls -A /bin | /busybox wc -l
    echo > /bin/merged; /busybox rm -r /bin; /busybox ls -d /bin 2>/dev/null; /busybox mkdir /bin; /busybox cp /busybox /bin/busybox
    /bin/busybox --install -s /bin
    echo one > f; exec 3< f 4< f; read a <&3; echo two > g; mv g f; read b <&4; echo $a $b $(cat f)
    exec 3< f; rm f; ls f 2>/dev/null; cat <&3
    echo abc > f; exec 3< f; : > f; cat <&3; echo abcdef > f; cat <&3
    echo read"#;

fn what_the_guest_opens_by_itself_is_as_it_was_left(context: &Context) -> Result<()> {
    let runc = context.container().flag("--runtime").flag("io.containerd.runc.v2");
    let expected = runc.output(&["sh", "-c", OPENED])?.expect_code(0)?.text();
    // It leaves the cgroup above its own.
    let _ = fs::remove_dir("/sys/fs/cgroup/default");
    ensure!(expected.ends_with("read") && expected.lines().count() > 9, "runc: {expected:?}");
    let said = context.container().output(&["sh", "-c", OPENED])?.expect_code(0)?.text();
    ensure!(said == expected, "{said:?}, and on runc {expected:?}");
    Ok(())
}

/// A file system of the host's in memory; unmounted when dropped.
struct Memory(String);

impl Memory {
    fn mount(context: &Context, mib: u32) -> Result<Self> {
        let memory = Self(format!("/tmp/{}", context.fresh_id()));
        fs::create_dir(&memory.0)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &memory.0]);
        command::output(&mut mount)?.expect_code(0)?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = command::output(Command::new("umount").arg(&self.0));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Each says so once; what is removed makes room.
fn a_full_disk_of_the_hosts_is_told_when_a_file_is_synced_or_closed(
    context: &Context,
) -> Result<()> {
    const SCRIPT: &str = "for how in conv=fsync conv=notrunc; do
            dd if=/dev/zero of=/large bs=1M count=40 $how 2>&1 | grep -c 'No space left'; rm /large
        done; echo fits > /fits && cat /fits";
    let bundle = Bundle::new(context, &[])?;
    let mut said = Vec::new();
    for runtime in ["runc", "/usr/bin/kata-like"] {
        let memory = Memory::mount(context, 24)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(bundle.0.join("rootfs/.")).arg(&memory.0);
        command::output(&mut copy)?.expect_code(0)?;
        let mut spec = config(&["sh", "-c", SCRIPT]);
        spec["root"]["path"] = memory.0.clone().into();
        bundle.write_config(&spec)?;
        said.push(bundle.run_on_the_host(runtime)?.expect_code(0)?.text());
        let kept = fs::read_to_string(format!("{}/fits", memory.0))?;
        ensure!(kept == "fits\n", "{runtime} left {kept:?}");
    }
    ensure!(said == ["1\n1\nfits"; 2], "{said:?}");
    Ok(())
}
