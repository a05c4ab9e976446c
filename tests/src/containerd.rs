//! The containerds that the tests run against: where each lives, and how it is started.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The archive of the test image inside the lab.
pub const IMAGE_ARCHIVE: &str = "/lab/busybox.tar";

/// The test image's name.
pub const IMAGE: &str = "docker.io/library/busybox:lab";

/// The image of the containers that hold a pod's namespaces; in the same archive.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:lab";

/// The namespaces of containerd's that have the images: that of `ctr`, and that of the CRI.
const NAMESPACES: [&str; 2] = ["default", "k8s.io"];

/// As the README says, but for the size.
const EROFS: &str = r#"[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]

[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]

[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "1GiB"

"#;

/// A containerd release line; each has its own files, sockets and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian trixie's 1.7, in the places that a package uses.
    V1_7,
    /// The newest 2.x, built from its Go module, side by side.
    V2_4,
}

impl Version {
    /// Both, oldest first.
    pub const ALL: [Self; 2] = [Self::V1_7, Self::V2_4];

    /// Those that this lab has: one made without Go has no newest one.
    pub fn installed() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|version| version.binary("containerd").exists())
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1_7 => "1.7",
            Self::V2_4 => "2.4",
        }
    }

    /// The version of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.name() == name)
    }

    /// The folder of `containerd` and `ctr`.
    pub fn bin_dir(self) -> &'static str {
        match self {
            Self::V1_7 => "/usr/bin",
            Self::V2_4 => "/opt/containerd-2.4/bin",
        }
    }

    fn binary(self, name: &str) -> PathBuf {
        PathBuf::from(self.bin_dir()).join(name)
    }

    /// What its files and folders have in their names.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::V1_7 => "",
            Self::V2_4 => "-2.4",
        }
    }

    /// Its socket.
    pub fn address(self) -> String {
        format!("/run/containerd{}/containerd.sock", self.suffix())
    }

    /// Its state folder, on tmpfs.
    pub fn state(self) -> String {
        format!("/run/containerd{}", self.suffix())
    }

    /// Its root folder, on disk.
    pub fn root(self) -> String {
        format!("/var/lib/containerd{}", self.suffix())
    }

    /// Where its log, and with it the shims' log, goes.
    pub fn log(self) -> String {
        format!("/var/log/containerd{}.log", self.suffix())
    }

    /// Holds its process id.
    pub fn pid_file(self) -> String {
        format!("/run/containerd{}.pid", self.suffix())
    }

    /// Its configuration: as the README says for users, with the places above.
    pub fn config(self) -> String {
        let (root, state, address) = (self.root(), self.state(), self.address());
        let (version, runtimes, pause) = match self {
            Self::V1_7 => (
                2,
                r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes"#,
                "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\n\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image",
            ),
            Self::V2_4 => (
                3,
                r#"plugins."io.containerd.cri.v1.runtime".containerd.runtimes"#,
                "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n\n\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox",
            ),
        };
        let by_sandbox_api = match self {
            Self::V1_7 => String::new(),
            Self::V2_4 => format!(
                "[{runtimes}.kata-like-sandbox]\nruntime_type = \"io.containerd.kata-like.v2\"\n\
                 sandboxer = \"shim\"\ndisable_pause_image_pull = true\n\n\
                 [{runtimes}.kata-like-erofs]\nruntime_type = \"io.containerd.kata-like.v2\"\n\
                 snapshotter = \"erofs\"\n\n[{runtimes}.kata-like-erofs.options]\n\
                 ConfigPath = \"/usr/share/kata-like/erofs.toml\"\n\n"
            ),
        };
        let erofs = match self {
            Self::V1_7 => "",
            Self::V2_4 => EROFS,
        };
        format!(
            "version = {version}\nroot = {root:?}\nstate = {state:?}\n\n[grpc]\naddress = {address:?}\n\n\
             {pause} = {PAUSE_IMAGE:?}\n\n\
             [{runtimes}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\n\
             [{runtimes}.kata-like]\nruntime_type = \"io.containerd.kata-like.v2\"\n\n\
             {by_sandbox_api}{erofs}\
             [plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = {:?}\nfs_type = \"ext4\"\n",
            self.scratch_file()
        )
    }

    /// An empty file system, which the blockfile snapshotter copies.
    fn scratch_file(self) -> String {
        format!("/var/lib/blockfile-scratch{}.ext4", self.suffix())
    }

    /// Makes that file; containerd mounts its copies by loop devices.
    fn make_scratch_file(self) -> Result<()> {
        let path = self.scratch_file();
        if !Path::new(&path).exists() {
            let made = Command::new("mke2fs").args(["-q", "-t", "ext4", &path, "16M"]).status();
            if !made.context("run mke2fs")?.success() {
                bail!("mke2fs {path} failed");
            }
        }
        // Where it is built in, this does nothing; where it is missing, mounting says so.
        let _ = Command::new("modprobe").arg("loop").status();
        Ok(())
    }

    /// `ctr`, speaking to this containerd.
    pub fn ctr(self) -> Command {
        let mut ctr = Command::new(self.binary("ctr"));
        ctr.arg("--address").arg(self.address());
        ctr
    }

    /// Whether it answers.
    pub fn is_up(self) -> bool {
        let quiet = self
            .ctr()
            .args(["--connect-timeout", "1s", "version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        quiet.is_ok_and(|status| status.success())
    }

    /// Starts it unless it answers, and waits until it does; its log goes on where it stood.
    ///
    /// # Errors
    /// When it doesn't answer within 60 s; the end of its log is in the message.
    pub fn start(self) -> Result<()> {
        if self.is_up() {
            return Ok(());
        }
        if !self.binary("containerd").exists() {
            bail!("this lab has no containerd {}: install Go, then start again", self.name());
        }
        let config = format!("/etc/containerd{}/config.toml", self.suffix());
        std::fs::create_dir_all(format!("/etc/containerd{}", self.suffix()))?;
        std::fs::write(&config, self.config())?;
        self.make_scratch_file()?;
        let log = File::options().append(true).create(true).open(self.log())?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new(self.binary("containerd"))
            .args(["--config", &config, "--log-level", "debug"])
            .env("PATH", format!("{}:{path}", self.bin_dir()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("start containerd")?;
        std::fs::write(self.pid_file(), child.id().to_string())?;
        let end = Instant::now() + Duration::from_secs(60);
        while !self.is_up() {
            if let Some(status) = child.try_wait()? {
                bail!("containerd {} ended ({status}): {}", self.name(), self.log_tail());
            }
            if Instant::now() > end {
                bail!("containerd {} does not answer: {}", self.name(), self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn log_tail(self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Imports the test images.
    ///
    /// # Errors
    /// When `ctr` says so.
    pub fn import_images(self) -> Result<()> {
        for namespace in NAMESPACES {
            let mut import = self.ctr();
            let output = import
                .args(["--namespace", namespace, "images", "import", IMAGE_ARCHIVE])
                .stdin(Stdio::null())
                .output()
                .context("run ctr")?;
            if !output.status.success() {
                bail!("import the test images: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }
}
