//! Pods by way of the CRI: how soon they run, what their network carries, what many of them take of memory.

use crate::CONTAINERD;
use crate::memory;
use crate::timing::{Runtime, milliseconds, timed};
use anyhow::{Context, Result, ensure};
use lab::bench::Row;
use lab::containerd::IMAGE;
use lab::pods::CRICTL;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Bytes sent each way.
const SENT: usize = 16 << 20;

/// How many pods there are when the memory of one is told.
const MANY: [usize; 3] = [1, 10, 30];

/// The lab's address in the pods' network.
const GATEWAY: &str = "10.88.0.1";

/// Counts what it is sent, on one port; sends on the other.
const SERVE: &str = "nc -ll -p 9000 -e wc -c & nc -ll -p 9001 -e head -c 16777216 /dev/zero & wait";

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::KataLike];

/// Our configuration where none is named.
const CONFIG: &str = "/etc/kata-like/config.toml";

/// All rows.
pub fn rows(runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
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
    for runtime in BOTH {
        rows.extend(memory_of_many(runtime)?);
    }
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
        let (container, ended) = pod.start(&["sh", "-c", SERVE])?;
        if counts {
            self.pod.push(milliseconds(began));
            self.running.push(milliseconds((began.0, ended)));
            self.round_trip.push(ping(&container)?);
            let ip = pod.ip()?;
            self.sent_in.push(mib_a_second(|| send(&ip))?);
            self.sent_out.push(mib_a_second(|| receive(&ip))?);
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

fn send(ip: &str) -> Result<()> {
    let mut stream = TcpStream::connect((ip, 9000))?;
    let block = vec![0; 1 << 20];
    for _ in 0..SENT / block.len() {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut counted = String::new();
    stream.read_to_string(&mut counted)?;
    ensure!(counted.trim() == SENT.to_string(), "the pod has counted {counted:?} bytes");
    Ok(())
}

fn receive(ip: &str) -> Result<()> {
    let mut stream = TcpStream::connect((ip, 9001))?;
    let read = std::io::copy(&mut stream, &mut std::io::sink())?;
    ensure!(read == SENT as u64, "the pod has sent {read} bytes");
    Ok(())
}

fn mib_a_second(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = crate::timing::now()?;
    work()?;
    let took = Duration::from_nanos(crate::timing::now()? - start);
    Ok((SENT >> 20) as f64 / took.as_secs_f64())
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
        let container = json!({"metadata": {"name": "c"}, "image": {"image": IMAGE},
            "command": args, "linux": {}});
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
