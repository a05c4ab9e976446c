//! A host whose first process is systemd: the lab with the programs' Debian over it, in namespaces of its own. There a
//! sandbox's cgroup is a scope of systemd's.

use super::disk;
use crate::bundle::Bundle;
use crate::command::{self, DEADLINE, Output};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use lab::containerd::{IMAGE_ARCHIVE, Version};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Units of that Debian that are of no use here, or are for a machine of one's own.
const MASKED: [&str; 17] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-tmpfiles-setup.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
];

const TARGET: &str =
    "[Unit]\nRequires=containerd.service dbus.socket\nAfter=containerd.service dbus.socket\n";

/// What the first process does before it is systemd. Its cgroup is the root of those that are seen.
const INIT: &str = r#"set -e; cd "$1"; echo 0 > /sys/fs/cgroup/$2/cgroup.procs
exec unshare --cgroup sh -ec 'mount -t proc proc proc; mount -t sysfs sys sys
mount -t cgroup2 -o nsdelegate cgroup sys/fs/cgroup; mount --rbind /dev dev; mount --bind "$0" var/lib
for at in run tmp var/log; do mount -t tmpfs tmpfs $at; done
mkdir -p old; pivot_root . old; ip link set lo up; umount -l /old
export container=docker; exec /usr/lib/systemd/systemd --system --unit=lab.target' "$3""#;

/// For all of the scripts: a client, and what systemd and the kernel know of scopes.
const WORDS: &str = r#"set -e; export PATH=/opt/cni/bin:$PATH
c() { crictl -r unix:///run/containerd-2.4/containerd.sock -i unix:///run/containerd-2.4/containerd.sock \
    -t 50s --config /dev/null "$@"; }
gone() { for i in $(seq 100); do systemctl -q is-active "$1" || return 0; sleep 0.1; done; echo "$1 stays"; exit 9; }
names() { for p in $(cat "$1/cgroup.procs"); do cat /proc/$p/comm; done | sort | tr '\n' ' '; }"#;

/// A pod of a handler, in a slice as kubelet makes one.
const POD: &str = r#"uid=$(echo $1 | tr -d -); cat > pod.json <<J
{"metadata": {"name": "$1", "namespace": "e2e", "uid": "$1"}, "log_directory": "/tmp", "linux": {"cgroup_parent":
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$uid.slice"}}
J
cat > c.json <<J
{"metadata": {"name": "c"}, "image": {"image": "docker.io/library/busybox:lab"}, "command": ["sleep", "1000000"],
    "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_shares": 1024}}}
J
pod=$(c runp --runtime $1 pod.json); unit=cri-containerd-$pod.scope; id=$(c create $pod c.json pod.json)
c start $id > /dev/null
at=/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$uid.slice/$unit
names $at; names $at/file-server; echo
first=$(cat $at/memory.max); systemctl show -P Slice -P Delegate $unit; systemctl daemon-reload
c update --memory 268435456 $id > /dev/null; now=$(cat $at/memory.max)
test "$now" = "$(systemctl show -P MemoryMax $unit)"; echo $(( (now - first) >> 20 >= 192 ))
c rmp -f $pod > /dev/null; gone $unit; test ! -e $at"#;

/// A container of the command line's, whose id is used again at once, and one in a scope of somebody else's.
const COMMANDS: &str = r#"cd "$1"; k() { kata-like --systemd-cgroup "$@" < /dev/null > /dev/null; }
for i in 1 2; do k run -d one; names /sys/fs/cgroup/system.slice/kata-like-one.scope; k delete -f one; done
gone kata-like-one.scope
systemd-run -q --scope -p Delegate=yes --unit=kata-like-one sleep 1000000 & sleep 1
k run -d one 2>&1 | grep -o 'not empty: 1 process'; names /sys/fs/cgroup/system.slice/kata-like-one.scope
systemctl stop kata-like-one.scope; gone kata-like-one.scope; systemctl list-units --failed --no-legend -t scope"#;

/// One that is up; its processes end, and its files are gone, when it is dropped.
struct Host {
    name: String,
    /// The parent of its first process.
    first: Option<Child>,
}

impl Host {
    fn boot(context: &Context) -> Result<Self> {
        let name = context.fresh_id();
        let [layers, files, cgroup] = [
            PathBuf::from("/run").join(&name),
            Path::new("/var/lib").join(&name),
            Path::new("/sys/fs/cgroup").join(&name),
        ];
        let mut host = Self { name, first: None };
        for directory in ["lower", "upper", "work", "root"] {
            fs::create_dir_all(layers.join(directory))?;
        }
        fs::create_dir(&files)?;
        fs::create_dir(&cgroup)?;
        let log = File::create(layers.join("log"))?;
        let script = format!(
            "set -e; cd {0}; mount -o ro {1} lower
             mount -t overlay -o lowerdir=lower:/,upperdir=upper,workdir=work overlay root",
            layers.display(),
            disk::disk()?.join(" "),
        );
        command::output(Command::new("sh").args(["-c", &script]))?.expect_code(0)?;
        let root = layers.join("root");
        configure(&root)?;
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--mount", "--propagation", "private", "--pid", "--net", "--uts", "--ipc"])
            .args(["--fork", "--kill-child", "sh", "-c", INIT, "init"])
            .args([&root, Path::new(&host.name), &files]);
        unshare.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        host.first = Some(unshare.spawn()?);
        let up = command::eventually("containerd is up, below systemd", DEADLINE, || {
            Ok(host.enter(&["systemctl", "is-active", "lab.target"])?.text() == "active")
        });
        up.with_context(|| fs::read_to_string(layers.join("log")).unwrap_or_default())?;
        Ok(host)
    }

    /// Runs a command in its namespaces, and as no process of systemd's.
    fn enter(&self, args: &[&str]) -> Result<Output> {
        let first = self.first.as_ref().context("it is not up")?.id();
        let children = format!("/proc/{first}/task/{first}/children");
        let init = fs::read_to_string(children)?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", init.trim(), "--mount", "--pid", "--net", "--uts", "--ipc"]);
        command::output(enter.arg("--cgroup").args(args))
    }

    /// Runs a script as a service of its, with an argument; what it says.
    fn run(&self, script: &str, argument: &str) -> Result<String> {
        let script = format!("{WORDS}\n{script}");
        let run = ["systemd-run", "--wait", "--pipe", "-q", "--working-directory=/tmp", "sh", "-c"];
        let output = self.enter(&[&run[..], &[&script, "script", argument]].concat())?;
        let log = || self.enter(&["tail", "-n", "5", "/var/log/containerd.log"]);
        let outcome = output.expect_code(0);
        Ok(outcome.with_context(|| log().map_or_else(|e| e.to_string(), |log| log.text()))?.text())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its first process is killed with it, and so is whatever is in its namespace.
        if let Some(first) = &mut self.first {
            let _ = first.kill();
            let _ = first.wait();
        }
        let end = "for i in $(seq 100); do grep -q 'populated 0' /sys/fs/cgroup/$0/cgroup.events && break; sleep 0.1; done
            find /sys/fs/cgroup/$0 -depth -type d -exec rmdir {} +; cd /; umount /run/$0/root /run/$0/lower
            rm -rf --one-file-system /run/$0 /var/lib/$0";
        let _ = command::output(Command::new("sh").args(["-c", end, &self.name]));
    }
}

/// What is the lab's own in it.
fn configure(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    fs::write(units.join("lab.target"), TARGET)?;
    let version = Version::V2_4;
    let service = format!(
        "[Service]\nType=notify\nDelegate=yes\nKillMode=process\nLimitNOFILE=infinity\n\
         Environment=PATH={0}:/usr/sbin:/usr/bin\nExecStart={0}/containerd --config /etc/containerd.toml\n\
         StandardOutput=append:/var/log/containerd.log\nStandardError=append:/var/log/containerd.log\n",
        version.bin_dir()
    );
    fs::write(units.join("containerd.service"), service)?;
    // That one wants a file of the lab's.
    let disabled = "disabled_plugins = [\"io.containerd.snapshotter.v1.blockfile\"]\n";
    let options = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata-like.options]\n\
        SystemdCgroup = true\n";
    let config = format!("{disabled}{}{options}", version.config());
    Ok(fs::write(root.join("etc/containerd.toml"), config)?)
}

/// Of pods in both ways, and of the command line.
pub fn sandboxes_are_scopes_where_systemd_is_the_first_process(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["sleep", "1000000"])?;
    let started = Instant::now();
    let host = Host::boot(context)?;
    let passed = || started.elapsed().as_secs_f32();
    println!("systemd and containerd are up: {:.1} s", passed());
    let version = Version::V2_4;
    let import = format!(
        "{}/ctr -a {} -n k8s.io images import {IMAGE_ARCHIVE}",
        version.bin_dir(),
        version.address()
    );
    host.run(&import, "")?;
    for handler in ["kata-like", "kata-like-sandbox"] {
        let said = host.run(POD, handler).context(handler)?;
        let slice = format!("kubepods-burstable-pod{}.slice", handler.replace('-', ""));
        let processes = "containerd-shim kata-like-stand kata-like-vmm kata-like-fs ";
        ensure!(said == format!("{processes}\n{slice}\nyes\n1"), "{handler}: {said:?}");
        println!("a pod by {handler}: {:.1} s", passed());
    }
    let said = host.run(COMMANDS, &bundle.0.display().to_string())?;
    let ours = "exe kata-like-vmm ";
    ensure!(said == format!("{ours}{ours}not empty: 1 process\nsleep "), "{said:?}");
    Ok(())
}
