//! What programs do inside a container, on the OCI runtimes in turn: small ones, each of which does one thing, and real
//! ones of the Debian on the disk of programs. Each gets a root file system of its own, an overlay over that disk, of which
//! the host knows what the program reads, as on a node where the image has run before. What is written goes to the host's
//! memory: how long a disk takes is the same for all.
//!
//! Of ours it is told besides how often the guest left to the host for it, in a run of its own, as counting takes time.

use crate::erofs::Image;
use crate::exits::Exits;
use crate::timing::{milliseconds, now};
use anyhow::{Context, Result, bail, ensure};
use lab::bench::{Failure, Row};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The small programs, as they are brought along.
const INSIDE: &str = "/run/lab/inside";

/// Where it all lies.
const DIRECTORY: &str = "/var/lib/bench-inside";

/// Ours, with writes to a disk of its guest's.
const OWN_DISK: &str = "kata-like, own disk";

/// Ours and runc, on an EROFS layer with a disk for what is written; and what containerd calls them.
const EROFS: [(&str, &str); 2] =
    [("runc, EROFS", "io.containerd.runc.v2"), ("kata-like, EROFS", "io.containerd.kata-like.v2")];

/// runc, with what is written on a file system of a disk, as on most nodes, not in memory.
const ON_EXT4: &str = "runc, ext4";

/// What is compared.
const RUNTIMES: [&str; 8] =
    ["runc", "crun", "runsc", "kata-like", OWN_DISK, ON_EXT4, EROFS[0].0, EROFS[1].0];

/// Those of which exits are counted.
const COUNTED: [&str; 2] = ["kata-like", OWN_DISK];

/// Those of them that are compared where there are several copies.
const WITHOUT_IMAGE: usize = 5;

/// How long a small program runs.
const SECONDS: &str = "1";

/// A small program, and of what it does how much a second.
const RATES: [(&str, &str, &str); 11] = [
    ("integers", "integers", "/s"),
    ("floating point", "floats", "/s"),
    ("memory copied", "memory", "MiB/s"),
    ("execl", "execs", "/s"),
    ("processes made", "forks", "/s"),
    ("pipe", "pipe", "/s"),
    ("pipe, two processes", "switches", "/s"),
    ("system calls, five", "calls", "/s"),
    ("file copied by 256 bytes", "copy-256", "KiB/s"),
    ("file copied by 1024 bytes", "copy-1024", "KiB/s"),
    ("file copied by 4096 bytes", "copy-4096", "KiB/s"),
];

/// What is run as a whole, and timed: a function.
const SHELL: [(&str, &str); 2] = [
    ("one shell script", "for i in $(seq 5); do sort /etc/services | grep -c tcp | od | wc; done"),
    (
        "8 shell scripts",
        "for i in $(seq 8); do (sort /etc/services | grep -c tcp | od | wc) & done; wait",
    ),
];

/// A real program, and how it is run; it prints the seconds that it took.
const PROGRAMS: [(&str, &str); 14] = [
    ("python3 starts", "timed python3 -c 'import json, email, argparse'"),
    ("64 MiB written and synced", "timed dd if=/dev/zero of=/var/tmp/file bs=1M count=64 conv=fsync status=none"),
    ("30 MiB of the image read", "timed dd if=$(echo /usr/libexec/gcc/*/*/cc1) of=/dev/null bs=1M status=none"),
    ("the same again", "again() { dd if=$(echo /usr/libexec/gcc/*/*/cc1) of=/dev/null bs=1M status=none; }; again; timed again"),
    ("find, cold", "timed find / -xdev"),
    ("find, warm", "find / -xdev > /dev/null; timed find / -xdev"),
    ("gcc", "cd /var/tmp; printf '#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }' > p.c; timed gcc -O2 -o p p.c; ./p >&2"),
    ("tar, 2,000 files", "mkdir /var/tmp/x; cd /; both() { tar c usr/lib/python3 usr/share/perl usr/share/doc | tar x -C /var/tmp/x; sync; }; timed both"),
    ("git, 100 files", "git config --global user.name n; git config --global user.email e@x; git init -q -b main /work; cd /work
        for i in $(seq 100); do mkdir d$i; echo $i > d$i/file; done
        all() { git add . && git commit -qm one && git fsck; }; timed all"),
    ("dpkg, 200 files", "cd /var/tmp; mkdir -p p/DEBIAN p/usr/share/made
        printf 'Package: made\nVersion: 1\nArchitecture: all\nMaintainer: m <m@x>\nDescription: d\n' > p/DEBIAN/control
        for i in $(seq 200); do echo $i > p/usr/share/made/$i; done; dpkg-deb --root-owner-group --build p made.deb >&2
        all() { dpkg -i made.deb && dpkg -P made; }; timed all"),
    ("erlang's machine starts", "timed erl -noshell -eval 'halt().'"),
    ("sqlite, 2,000 rows, 40 commits", "cd /var/tmp; sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT);' >&2
        rows() { for i in $(seq 40); do echo 'BEGIN;'; for n in $(seq 50); do echo \"INSERT INTO t (v) VALUES ('value $i $n');\"; done; echo 'COMMIT;'; done; }
        rows > rows.sql; all() { sqlite3 db < rows.sql && sqlite3 db 'PRAGMA integrity_check;'; }; timed all"),
    ("redis, 2,000 × SET", "cd /var/tmp; redis-server --port 0 --unixsocket /dev/shm/r.sock --daemonize yes --save '' >&2
        until redis-cli -s /dev/shm/r.sock ping >&2; do sleep 0.1; done
        timed redis-benchmark -s /dev/shm/r.sock -n 2000 -c 10 -t set -q"),
    ("pgbench, 2 × 50 transactions", r#"d=/var/lib/postgresql/17/main; cd /var/tmp; touch log; chown postgres log; chmod 1777 /run
        as() { su postgres -c "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) $*"; }
        set='-c config_file=/etc/postgresql/17/main/postgresql.conf -k /run -h \"\"'
        as "pg_ctl -D $d -w -t 900 -l /var/tmp/log -o '$set' start" >&2
        echo 'CREATE TABLE t (n serial PRIMARY KEY, v int); INSERT INTO t (v) VALUES (0)' > s; as "psql -h /run -qf /var/tmp/s" >&2
        echo 'BEGIN; INSERT INTO t (v) VALUES (1); UPDATE t SET v = v + 1 WHERE n = 1; COMMIT' > s
        all() { as "pgbench -h /run -n -c 2 -t 50 -f /var/tmp/s"; }; timed all; as "pg_ctl -D $d -w -t 900 -m fast stop" >&2"#),
];

/// In the guest's own time: what starts the container is measured elsewhere.
const TIMED: &str =
    "timed() { local start=$EPOCHREALTIME; \"$@\" >&2 || exit 1; echo $start $EPOCHREALTIME; }; ";

/// What is run: its name, unit, and script.
type Job = (String, &'static str, String);

/// Those whose names have `only`.
fn jobs(copies: u32, only: &str) -> Vec<Job> {
    let beside = |what: &str| format!("for copy in $(seq {copies}); do ({what}) & done; wait");
    let rates = RATES.iter().map(|(name, program, unit)| {
        let script = beside(&format!(
            "mkdir /var/tmp/$copy && cd /var/tmp/$copy && exec inside {program} {SECONDS}"
        ));
        (lab::bench::of_copies(name, copies), *unit, script)
    });
    let shell = SHELL.iter().map(|(name, what)| {
        let script = format!("{TIMED}all() {{ {}; }}; timed all", beside(what));
        (lab::bench::of_copies(name, copies), "s", script)
    });
    let programs = PROGRAMS
        .iter()
        .filter(|_| copies == 1)
        .map(|(name, script)| ((*name).to_owned(), "s", format!("{TIMED}{script}")));
    rates.chain(shell).chain(programs).filter(|(name, ..)| name.contains(only)).collect()
}

/// What all runs have shown.
#[derive(Default)]
pub struct Figures {
    pub rows: Vec<Row>,
    /// Exits, as [`lab::bench::Report::exits`] has them.
    pub exits: Vec<Row>,
    /// What a runtime did not get through.
    pub failures: Vec<Failure>,
}

/// Runs all whose names have `only`, `runs` times each.
pub fn figures(runs: usize, copies: u32, only: &str) -> Result<Figures> {
    fs::create_dir_all(DIRECTORY)?;
    command(Command::new("mount").args(["-t", "tmpfs", "tmpfs", DIRECTORY]))?;
    let lower = Path::new(DIRECTORY).join("lower");
    fs::create_dir_all(&lower)?;
    let disk = format!("LABEL={}", lab::programs::LABEL);
    command(Command::new("mount").args(["-o", "ro", &disk]).arg(&lower))?;
    let image = (copies == 1).then(|| Image::of(&lower, Path::new(DIRECTORY))).transpose()?;
    let runtimes = if image.is_some() { &RUNTIMES[..] } else { &RUNTIMES[..WITHOUT_IMAGE] };
    let container = Container { copies, image: image.as_ref() };
    let ext4 = Ext4::mount()?;
    let mut figures = Figures::default();
    if copies == 1 {
        figures.exits = exits(&container, &jobs(1, only))?;
    }
    for (name, unit, script) in jobs(copies, only) {
        let mut samples = vec![Vec::new(); runtimes.len()];
        // Caches fill; that it fails is told below.
        let _ = container.figure(runtimes[0], &script);
        for _ in 0..runs {
            for (runtime, samples) in runtimes.iter().zip(&mut samples) {
                match container.figure(runtime, &script) {
                    Ok(figure) => {
                        eprintln!("[bench] {name} on {runtime}: {figure:.2} {unit}");
                        samples.push(figure);
                    }
                    Err(error) => {
                        let (name, runtime) = (name.clone(), (*runtime).to_owned());
                        let said = format!("{error:#}");
                        eprintln!("[bench] {name} on {runtime}: {said}");
                        figures.failures.push(Failure { name, runtime, said });
                    }
                }
            }
        }
        for (runtime, samples) in runtimes.iter().zip(&samples) {
            figures.rows.extend(Row::of(&name, unit, runtime, samples));
        }
    }
    drop((image, ext4));
    for mounted in [&lower, Path::new(DIRECTORY)] {
        command(Command::new("umount").arg(mounted))?;
    }
    Ok(figures)
}

/// How often the guest left to the host, and told a device of requests, for each: in all, or for a thousand of what is
/// done. What a container takes that does nothing is left out.
fn exits(container: &Container<'_>, jobs: &[Job]) -> Result<Vec<Row>> {
    let counting = Exits::count()?;
    let mut rows = Vec::new();
    for runtime in COUNTED {
        let of = |script: &str| -> Result<(f64, [u64; 2])> {
            let before = counting.so_far()?;
            let figure = container.figure(runtime, script)?;
            let after = counting.so_far()?;
            Ok((figure, [0, 1].map(|kind| after[kind] - before[kind])))
        };
        // The first is slower, as nobody has started such a machine before.
        let nothing = format!("{TIMED}timed true");
        of(&nothing)?;
        let (_, idle) = of(&nothing)?;
        for (name, unit, script) in jobs {
            // That it fails is told with its figures.
            let Ok((figure, counted)) = of(script) else { continue };
            let times = if *unit == "s" { 1.0 } else { figure / 1000.0 };
            let names = ["exits", "notifications"];
            for ((kind, counted), idle) in names.iter().zip(counted).zip(idle) {
                let each = counted.saturating_sub(idle) as f64 / times;
                eprintln!("[bench] {name} on {runtime}: {each:.1} {kind}");
                rows.extend(Row::of(name, kind, runtime, &[each]));
            }
        }
    }
    Ok(rows)
}

/// In what it is run.
struct Container<'a> {
    /// How many copies at once, and how many CPUs there are for them.
    copies: u32,
    image: Option<&'a Image>,
}

impl Container<'_> {
    /// What the script prints: rates, of which the sum is taken, or when it began and ended, seconds.
    fn figure(&self, runtime: &str, script: &str) -> Result<f64> {
        if let Some((_, runtime)) = EROFS.iter().find(|(name, _)| *name == runtime) {
            let image = self.image.context("there is no image")?;
            return said(&mut image.run(runtime, INSIDE, script));
        }
        let above = if runtime == ON_EXT4 { Ext4::AT } else { DIRECTORY };
        let root = Root::mount(Path::new(above))?;
        fs::copy(INSIDE, root.path().join("usr/bin/inside"))?;
        let bundle = Path::new(DIRECTORY).join("bundle");
        fs::create_dir_all(&bundle)?;
        let config = config(&root.path(), script, self.copies);
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut run = Command::new(runtime.split(',').next().unwrap_or(runtime));
        match runtime {
            "runsc" => drop(run.arg("--network=none")),
            OWN_DISK => {
                let file = bundle.join("disk.toml");
                fs::write(&file, "[root]\nwrites = \"disk\"\n")?;
                run.arg("--config").arg(file);
            }
            _ => {}
        }
        said(run.arg("run").arg("--bundle").arg(&bundle).arg("bench-inside"))
    }
}

/// The figure that a container prints.
fn said(run: &mut Command) -> Result<f64> {
    run.stdin(Stdio::null());
    let start = now()?;
    let output = run.output().context("start it")?;
    let took = milliseconds((start, now()?));
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{} after {took:.0} ms: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).lines().next_back().unwrap_or_default()
    );
    let lines = said.lines().map(|line| line.split_whitespace().map(str::parse).collect());
    let lines: Result<Vec<Vec<f64>>, _> = lines.collect();
    match &lines.with_context(|| format!("it said {said:?}"))?[..] {
        [times] if times.len() == 2 => Ok(times[1] - times[0]),
        rates if !rates.is_empty() && rates.iter().all(|rate| rate.len() == 1) => {
            Ok(rates.iter().flatten().sum())
        }
        _ => bail!("it said {said:?}"),
    }
}

fn config(root: &Path, script: &str, cpus: u32) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let all =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["bash", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"],
            "cwd": "/",
            "capabilities": {"bounding": all, "effective": all, "permitted": all},
        },
        "root": {"path": root},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]},
        ],
        "linux": {
            "namespaces": namespaces.map(|name| json!({"type": name})),
            "resources": {
                "memory": {"limit": 512 << 20},
                "cpu": {"quota": cpus * 100_000, "period": 100_000},
            },
        },
    })
}

/// A disk with a file system, in the host's memory.
struct Ext4;

impl Ext4 {
    const AT: &str = "/var/lib/bench-inside/ext4";

    fn mount() -> Result<Self> {
        let image = Path::new(DIRECTORY).join("ext4.image");
        fs::File::create(&image)?.set_len(4 << 30)?;
        command(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        fs::create_dir_all(Self::AT)?;
        command(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(Self::AT))?;
        Ok(Self)
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = command(Command::new("umount").arg(Self::AT));
    }
}

/// A root file system that is thrown away.
struct Root(PathBuf);

impl Root {
    /// With what is written below a directory.
    fn mount(above: &Path) -> Result<Self> {
        let root = Self(above.join("root"));
        for directory in ["upper", "work", "merged"] {
            fs::create_dir_all(root.0.join(directory))?;
        }
        let at = |name: &str| root.0.join(name).display().to_string();
        let (upper, work) = (at("upper"), at("work"));
        let options = format!("lowerdir={DIRECTORY}/lower,upperdir={upper},workdir={work}");
        command(
            Command::new("mount")
                .args(["-t", "overlay", "-o", &options, "overlay"])
                .arg(root.path()),
        )?;
        Ok(root)
    }

    fn path(&self) -> PathBuf {
        self.0.join("merged")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = command(Command::new("umount").arg(self.path()));
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
