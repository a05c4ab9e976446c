//! One life by command line, on four OCI runtimes in turn: create, start, kill, delete.
//!
//! A kill is over when the container's process has ended, a start of a program that ends by itself too.

use crate::timing::{milliseconds, now, timed};
use anyhow::{Context, Result, bail};
use lab::bench::Row;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Programs of the runtimes; all but ours are Debian packages.
const RUNTIMES: [&str; 4] = ["runc", "crun", "runsc", "kata-like"];

/// Name and arguments. All but the first run until they are killed.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("hello-world", &["echo", "Hello from a container"]),
    ("pause", &["sleep", "1000000"]),
    ("yes", &["yes"]),
    ("yes under dumb-init", &["dumb-init", "yes"]),
];

/// The steps in their order; the last is the sum of the others.
const STEPS: [&str; 5] = ["create", "start", "kill", "delete", "sum"];

/// How long a killed container may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every program on every runtime; `runs` times after a first life that is thrown away.
pub fn rows(runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (program, args) in PROGRAMS {
        let bundle = bundle(args)?;
        let mut samples = vec![vec![Vec::new(); STEPS.len()]; RUNTIMES.len()];
        for run in 0..=runs {
            for (runtime, samples) in RUNTIMES.iter().zip(&mut samples) {
                let mut life = life(runtime, &bundle, program == "hello-world")
                    .with_context(|| format!("{program} on {runtime}"))?;
                life.push(life.iter().sum());
                eprintln!("[bench] {program} on {runtime}: {life:.0?} ms");
                if run > 0 {
                    samples.iter_mut().zip(life).for_each(|(step, ms)| step.push(ms));
                }
            }
        }
        for (runtime, samples) in RUNTIMES.iter().zip(&samples) {
            for (step, samples) in STEPS.iter().zip(samples) {
                rows.extend(Row::of(&format!("{program}: {step}"), "ms", runtime, samples));
            }
        }
        fs::remove_dir_all(&bundle)?;
    }
    Ok(rows)
}

/// A bundle with busybox and dumb-init, and what that is linked to.
fn bundle(args: &[&str]) -> Result<PathBuf> {
    let directory = PathBuf::from("/tmp/bench-bundle");
    let root = directory.join("rootfs");
    let files = [
        ("/usr/bin/busybox", "bin/busybox"),
        ("/usr/bin/dumb-init", "bin/dumb-init"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6"),
        ("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
    ];
    for (from, to) in files {
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(from, to)?;
    }
    for applet in ["echo", "sleep", "yes"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    for folder in ["proc", "dev", "sys"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::write(directory.join("config.json"), config(args).to_string())?;
    Ok(directory)
}

/// What `runc spec` writes, as far as it matters here.
fn config(args: &[&str]) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
        ],
        "linux": {"namespaces": namespaces.map(|name| json!({"type": name}))},
    })
}

/// Takes a container through its life; ms of create, start, kill and delete.
fn life(runtime: &str, bundle: &Path, ends_by_itself: bool) -> Result<Vec<f64>> {
    let id = format!("bench-{runtime}");
    let pid_file = bundle.join("pid");
    let command = |words: &[&str]| {
        let mut command = Command::new(runtime);
        if runtime == "runsc" {
            // It would want a configured interface where the others make an empty namespace.
            command.arg("--network=none");
        }
        command.args(words);
        command
    };
    let mut create = command(&["create", "--bundle"]);
    create.arg(bundle).arg("--pid-file").arg(&pid_file).arg(&id);
    // Its streams are the container's.
    create.stdin(Stdio::null()).stdout(File::options().write(true).open("/dev/null")?);
    let begin = now()?;
    let status = create.stderr(Stdio::null()).status().context("create")?;
    let created = milliseconds((begin, now()?));
    if !status.success() {
        bail!("create: {status}");
    }
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    let begin = now()?;
    timed(&mut command(&["start", &id]))?;
    if ends_by_itself {
        wait(pid)?;
    }
    let started = milliseconds((begin, now()?));
    let mut killed = 0.0;
    if !ends_by_itself {
        // Long enough for the program to be at work.
        std::thread::sleep(Duration::from_millis(200));
        let begin = now()?;
        timed(&mut command(&["kill", &id, "KILL"]))?;
        wait(pid)?;
        killed = milliseconds((begin, now()?));
    }
    let deleted = milliseconds(timed(&mut command(&["delete", &id]))?);
    Ok(vec![created, started, killed, deleted])
}

/// Waits for the process that stands for a container to end; somebody else reaps it.
fn wait(pid: i32) -> Result<()> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let end = Instant::now() + PATIENCE;
    while process.exists() {
        if Instant::now() > end {
            bail!("process {pid} does not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
