//! Pods by way of the CRI: how soon they run, what their network carries, what many of them take of memory.

use crate::CONTAINERD;
use crate::memory;
use crate::timing::{Runtime, milliseconds, timed};
use anyhow::{Context, Result, bail, ensure};
use lab::bench::Row;
use lab::containerd::IMAGE;
use lab::pods::CRICTL;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long iperf3 sends each way, s: a number of bytes it would count to the next full second.
const SENDING: &str = "3";

/// How many pods there are when the memory of one is told.
const MANY: [usize; 3] = [1, 10, 30];

/// The lab's address in the pods' network.
const GATEWAY: &str = "10.88.0.1";

/// Where the disk of programs is mounted, here and in the containers.
const PROGRAMS: &str = "/run/bench-programs";

/// iperf3 by the loader and the libraries of its Debian, as neither the lab nor the image has them.
const IPERF: [&str; 4] = [
    "/run/bench-programs/usr/lib64/ld-linux-x86-64.so.2",
    "--library-path",
    "/run/bench-programs/usr/lib/x86_64-linux-gnu",
    "/run/bench-programs/usr/bin/iperf3",
];

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::KataLike];

/// Our configuration where none is named.
const CONFIG: &str = "/etc/kata-like/config.toml";

/// How soon they run, and their network.
pub fn rows(runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    fs::create_dir_all(PROGRAMS)?;
    let disk = format!("LABEL={}", lab::programs::LABEL);
    timed(Command::new("mount").args(["-o", "ro", &disk, PROGRAMS]))?;
    let mut samples = [Samples::default(), Samples::default(), Samples::default()];
    for run in 0..=runs {
        let [runc, ours, by_host] = &mut samples;
        for (runtime, samples) in BOTH.into_iter().zip([runc, ours]) {
            eprintln!("pod {run} of {runs}, {}", runtime.name());
            samples.add(runtime, run > 0)?;
        }
        eprintln!("pod {run} of {runs}, {BY_HOST}");
        by_host_net(|| by_host.add(Runtime::KataLike, run > 0))?;
    }
    let [_, _, by_host] = &samples;
    let network = by_host.rows(BY_HOST).filter(|row| row.name.starts_with(NETWORK));
    let network: Vec<_> = network.collect();
    for (runtime, samples) in BOTH.into_iter().zip(&samples) {
        rows.extend(samples.rows(runtime.name()));
    }
    rows.extend(network);
    timed(Command::new("umount").arg(PROGRAMS))?;
    Ok(rows)
}

/// Ours where the host's kernel serves pods' interfaces.
const BY_HOST: &str = "kata-like, vhost-net";

/// What the rows begin with that are of the network.
const NETWORK: &str = "pod's network: ";

/// Does `work` while our configuration says so.
fn by_host_net(work: impl FnOnce() -> Result<()>) -> Result<()> {
    timed(Command::new("modprobe").arg("vhost_net"))?;
    fs::create_dir_all(Path::new(CONFIG).parent().context("its directory")?)?;
    ensure!(!fs::exists(CONFIG)?, "there is a {CONFIG}");
    fs::write(CONFIG, "[network]\nvhost_net = true\n")?;
    let done = work();
    fs::remove_file(CONFIG)?;
    done
}

/// Of one handler.
#[derive(Default)]
struct Samples {
    /// ms
    pod: Vec<f64>,
    running: Vec<f64>,
    round_trip: Vec<f64>,
    /// MiB/s
    sent_in: Vec<f64>,
    sent_out: Vec<f64>,
}

impl Samples {
    fn add(&mut self, runtime: Runtime, counts: bool) -> Result<()> {
        let (pod, began) = Pod::run(runtime)?;
        let (container, ended) = pod.start(&[&IPERF[..], &["--server"]].concat())?;
        if counts {
            self.pod.push(milliseconds(began));
            self.running.push(milliseconds((began.0, ended)));
            self.round_trip.push(ping(&container)?);
            let ip = pod.ip()?;
            self.sent_in.push(mib_a_second(&ip, &[])?);
            self.sent_out.push(mib_a_second(&ip, &["--reverse"])?);
        }
        pod.remove()
    }

    fn rows(&self, runtime: &str) -> impl Iterator<Item = Row> {
        let rows = [
            ("crictl runp", "ms", &self.pod),
            ("pod with a running container", "ms", &self.running),
            ("pod's network: round trip", "ms", &self.round_trip),
            ("pod's network: to the pod", "MiB/s", &self.sent_in),
            ("pod's network: from the pod", "MiB/s", &self.sent_out),
        ];
        let runtime = runtime.to_owned();
        rows.into_iter().filter_map(move |(name, unit, of)| Row::of(name, unit, &runtime, of))
    }
}

/// Their memory.
pub fn memory() -> Result<Vec<Row>> {
    let rows = BOTH.map(memory_of_many).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(rows.concat())
}

fn memory_of_many(runtime: Runtime) -> Result<Vec<Row>> {
    let mut pods = Vec::new();
    let mut rows = Vec::new();
    for count in MANY {
        while pods.len() < count {
            eprintln!("pod {} of {}, {}", pods.len() + 1, MANY[MANY.len() - 1], runtime.name());
            let pod = Pod::run(runtime)?.0;
            pod.start(&["sleep", "1000000"])?;
            pods.push(pod);
        }
        let all: Result<Vec<_>> = pods.iter().map(|pod| memory::whole(&pod.id)).collect();
        let each = all?.iter().sum::<f64>() / count as f64;
        let name = format!("memory of an idle pod, one of {count}");
        rows.extend(Row::of(&name, "MiB", runtime.name(), &[each]));
    }
    pods.into_iter().try_for_each(Pod::remove)?;
    Ok(rows)
}

/// By iperf3's own count of what has arrived.
fn mib_a_second(ip: &str, way: &[&str]) -> Result<f64> {
    let mut iperf = Command::new(IPERF[0]);
    iperf.args(&IPERF[1..]).args(["--client", ip, "--json", "--time", SENDING]).args(way);
    // Its server may not listen yet.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let output = iperf.output().context("iperf3")?;
        let said: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
        match said["end"]["sum_received"]["bits_per_second"].as_f64() {
            Some(bits) if output.status.success() => return Ok(bits / 8.0 / f64::from(1 << 20)),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            _ => bail!("iperf3: {}", said["error"]),
        }
    }
}

/// The mean of ten from a container to the lab, ms.
fn ping(container: &str) -> Result<f64> {
    let text = said(&["exec", container, "ping", "-q", "-c", "10", "-i", "0.1", GATEWAY])?;
    let times = text.rsplit_once('=').context("ping's last line")?.1;
    Ok(times.split('/').nth(1).context("ping's mean")?.trim().parse()?)
}

struct Pod {
    id: String,
    directory: PathBuf,
}

fn crictl(args: &[&str]) -> Command {
    let socket = format!("unix://{}", CONTAINERD.address());
    let mut crictl = Command::new(CRICTL);
    crictl.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--timeout", "60s"]);
    // Elsewhere it looks for a configuration, and warns that it has none.
    crictl.args(["--config", "/dev/null"]).args(args);
    crictl
}

fn said(args: &[&str]) -> Result<String> {
    let output = crictl(args).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Pod {
    /// Also start and end of `crictl runp`, ns.
    fn run(runtime: Runtime) -> Result<(Self, (u64, u64))> {
        let name = format!("bench-{}", crate::timing::now()?);
        let directory = PathBuf::from("/tmp").join(&name);
        fs::create_dir_all(&directory)?;
        let file = directory.join("pod.json");
        let metadata = json!({"name": name, "namespace": "bench", "uid": name, "attempt": 0});
        fs::write(&file, json!({"metadata": metadata, "linux": {}}).to_string())?;
        let file = file.display().to_string();
        let took = timed(&mut crictl(&["runp", "--runtime", runtime.name(), &file]))?;
        let id = said(&["pods", "--quiet", "--no-trunc", "--name", &name])?;
        Ok((Self { id, directory }, took))
    }

    /// Gives the container's id, and when it had been started.
    fn start(&self, args: &[&str]) -> Result<(String, u64)> {
        let config = self.directory.join("container.json");
        let mounted = Path::new(IPERF[0]).exists();
        let programs = json!({"host_path": PROGRAMS, "container_path": PROGRAMS, "readonly": true});
        let mounts = if mounted { vec![programs] } else { Vec::new() };
        let container = json!({"metadata": {"name": "c"}, "image": {"image": IMAGE},
            "command": args, "mounts": mounts, "linux": {}});
        fs::write(&config, container.to_string())?;
        let pod = self.directory.join("pod.json").display().to_string();
        let id = said(&["create", &self.id, &config.display().to_string(), &pod])?;
        let (_, ended) = timed(&mut crictl(&["start", &id]))?;
        Ok((id, ended))
    }

    fn ip(&self) -> Result<String> {
        let template = "{{.status.network.ip}}";
        said(&["inspectp", "--output", "go-template", "--template", template, &self.id])
    }

    fn remove(self) -> Result<()> {
        said(&["rmp", "--force", &self.id])?;
        fs::remove_dir_all(&self.directory).map_err(Into::into)
    }
}
