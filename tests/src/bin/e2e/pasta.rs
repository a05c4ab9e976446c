//! The network of `kata-like run`: out, in, by name, or none; and nothing that stays.

use crate::bundle::{Background, Bundle};
use crate::command::{self, DEADLINE, Output, Running};
use crate::confinement::pid_of;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

crate::cases!(
    crate::Scope::Once;
    an_image_reaches_what_the_host_does_by_name;
    crate::Scope::AllOnce;
    published_ports_reach_the_container,
    no_network_and_what_can_not_be,
    a_bundle_has_it_when_told_and_nothing_outlives_a_kill,
);

/// An address of the lab's beside its own, which a container has as well.
const OUTSIDE: &str = "192.0.2.77";

/// `kata-like run ARGS…`.
fn run(args: &[&str]) -> Command {
    let mut run = Command::new("/usr/bin/kata-like");
    run.arg("run").args(args);
    run
}

fn image() -> &'static str {
    lab::containerd::IMAGE_ARCHIVE
}

/// The pastas there are.
fn pastas() -> Result<String> {
    Ok(command::output(Command::new("pidof").args(["pasta", "pasta.avx2"]))?.text())
}

fn no_pasta_stays() -> Result<()> {
    command::eventually("pasta is gone", DEADLINE, || Ok(pastas()?.is_empty()))
}

/// The address above, while it lives.
struct Outside;

impl Outside {
    fn new() -> Result<Self> {
        let mut ip = Command::new("ip");
        command::output(ip.args(["addr", "add", OUTSIDE, "dev", "lo"]))?.expect_code(0)?;
        Ok(Self)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let mut ip = Command::new("ip");
        let _ = command::output(ip.args(["addr", "del", OUTSIDE, "dev", "lo"]));
    }
}

/// Answers each query for an IPv4 address with that of outside, until it is told `end`.
fn resolve(socket: &UdpSocket) -> Result<()> {
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query)?;
        let query = query.get(..length).context("a query")?;
        if query == b"end" {
            return Ok(());
        }
        let name = query.get(12..).context("a question")?;
        let end = 12 + name.iter().position(|byte| *byte == 0).context("a name")? + 5;
        let question = query.get(12..end).context("a type and a class")?;
        let is_ipv4 = question[question.len() - 4..] == [0, 1, 0, 1];
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
        answer.extend(question);
        if is_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
        }
        socket.send_to(&answer, from)?;
    }
}

/// With the host's resolver at its own localhost, as systemd's is.
fn an_image_reaches_what_the_host_does_by_name(context: &Context) -> Result<()> {
    let _outside = Outside::new()?;
    let resolver = UdpSocket::bind("127.0.0.53:53")?;
    let answering = std::thread::spawn(move || resolve(&resolver));
    let listener = TcpListener::bind((OUTSIDE, 0))?;
    let port = listener.local_addr()?.port();
    let greeting = std::thread::spawn(move || -> Result<String> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"welcome\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    });
    let file = format!("/tmp/{}-resolv.conf", context.fresh_id());
    std::fs::write(&file, "nameserver 127.0.0.53\nsearch lab.test\n")?;
    let inside = format!("cat /etc/resolv.conf; echo hello | nc -w 20 outside.lab.test {port}");
    let script = format!(
        "mount --bind {file} /etc/resolv.conf; exec kata-like run {} sh -c \"$0\"",
        image()
    );
    let mut unshare = Command::new("unshare");
    let said = command::output(unshare.args(["--mount", "sh", "-c", &script, &inside]));
    UdpSocket::bind("127.0.0.1:0")?.send_to(b"end", "127.0.0.53:53")?;
    std::fs::remove_file(file)?;
    let said = said?.expect_code(0)?.text();
    if said != "nameserver 169.254.1.1\nsearch lab.test\nwelcome" {
        bail!("the container said {said:?}");
    }
    answering.join().map_err(|_| anyhow::anyhow!("the resolver panicked"))??;
    let heard = greeting.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    if heard != "hello\n" {
        bail!("the server heard {heard:?}");
    }
    no_pasta_stays()
}

fn published_ports_reach_the_container(_: &Context) -> Result<()> {
    // The lab's own, since busybox has no server for datagrams.
    let socat = "/host/lib64/ld-linux-x86-64.so.2 --library-path /host/lib/x86_64-linux-gnu /host/bin/socat";
    let inside = format!("{socat} udp-listen:53,fork pipe & exec {socat} tcp-listen:80,fork pipe");
    let published =
        ["-p", "18080:80", "--publish", "127.0.0.1:18053:53/udp", "-v", "/usr:/host:ro"];
    let running = Running::start(run(&published).args([image(), "sh", "-c", &inside]), Vec::new())?;
    let tested = || {
        let mut said = String::new();
        // By either of the host's addresses; a port of which nobody listens yet resets.
        for address in ["127.0.0.1", "10.0.2.15"] {
            command::eventually("the container answers", DEADLINE, || {
                said.clear();
                let Ok(mut stream) = TcpStream::connect((address, 18080)) else { return Ok(false) };
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let asked = stream.write_all(b"it");
                let asked = asked.and_then(|()| stream.shutdown(Shutdown::Write));
                Ok(asked.is_ok() && stream.read_to_string(&mut said).is_ok() && !said.is_empty())
            })?;
            if said != "it" {
                bail!("by {address} the container said {said:?}");
            }
        }
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        command::eventually("the container echoes", DEADLINE, || {
            socket.send_to(b"datagram", "127.0.0.1:18053")?;
            let mut back = [0; 16];
            Ok(socket.recv(&mut back).is_ok_and(|length| &back[..length] == b"datagram"))
        })?;
        if TcpStream::connect(("127.0.0.1", 18053)).is_ok() {
            bail!("a port for datagrams takes connections");
        }
        // One that is taken is another's.
        let taken = command::output(run(&["-p", "18080:80"]).args([image(), "true"]))?;
        taken.expect_error(&["18080", "in use"])?;
        Ok(())
    };
    let tested = tested();
    running.signal(Signal::SIGKILL)?;
    let ended: Output = running.finish(DEADLINE)?;
    tested.with_context(|| format!("the container said {:?}", ended.stderr))?;
    no_pasta_stays()?;
    // What a killed run has left is the next one's to remove.
    command::output(run(&["--net=none"]).args([image(), "true"]))?.expect_code(0).map(drop)
}

fn no_network_and_what_can_not_be(context: &Context) -> Result<()> {
    let look = ["ls", "/sys/class/net"];
    let none = command::output(run(&["--net", "none", image()]).args(look))?.expect_code(0)?.text();
    let bundle = Bundle::new(context, &["cat", "/proc/net/dev"])?;
    let bundles = bundle.run()?.expect_code(0)?.text();
    if none != "lo" || bundles.contains("eth0") {
        bail!("without a network there are {none:?} and {bundles:?}");
    }
    let with = command::output(run(&[image()]).args(look))?.expect_code(0)?.text();
    if with.split_whitespace().collect::<Vec<_>>() != ["eth0", "lo"] {
        bail!("with a network there are {with:?}");
    }
    for (args, words) in [
        (&["-p", "80"][..], "HOSTPORT:PORT"),
        (&["-p", "80:0"], "is no port"),
        (&["-p", "host:80:80"], "is no address"),
        (&["-p", "80:80/sctp"], "is neither tcp nor udp"),
        (&["--net", "none", "-p", "80:80"], "--net none"),
        (&["--net", "host"], "host"),
        (&["-p", "192.0.2.99:18080:80"], "192.0.2.99"),
    ] {
        command::output(run(args).args([image(), "true"]))?.expect_error(&[words])?;
    }
    // One that fails: who asked for no network gets none, and is told.
    let directory = PathBuf::from(format!("/tmp/{}", context.fresh_id()));
    fs::create_dir(&directory)?;
    let pasta = directory.join("pasta");
    fs::write(&pasta, "#!/bin/sh\necho no tun here >&2; exit 1\n")?;
    fs::set_permissions(&pasta, Permissions::from_mode(0o755))?;
    let failing = |args: &[&str]| {
        let path = format!("{}:/usr/sbin:/usr/bin", directory.display());
        command::output(run(args).args([image()]).args(look).env("PATH", path))
    };
    let (without, with) = (failing(&[]), failing(&["--net", "pasta"]));
    fs::remove_dir_all(&directory)?;
    let without = without?.expect_code(0)?.expect_stderr_of("no tun here; --net none says")?;
    with?.expect_error(&["the network could not be made: pasta: no tun here"])?;
    if without != "lo" {
        bail!("with a pasta that fails there are {without:?}");
    }
    no_pasta_stays()
}

fn a_bundle_has_it_when_told_and_nothing_outlives_a_kill(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &["sh", "-c", "mount -t sysfs s /sys; sleep 1000000"])?;
    for victim in ["monitor", "kata-like-vmm", "none"] {
        let container = Background::of(context, "/usr/bin/kata-like", &bundle);
        container.begin("run", &["--detach", "--net", "pasta", "-p", "18080:80"])?;
        let look = ["cat", "/proc/net/dev", "/etc/resolv.conf"];
        let said = container.say("exec", &look)?.expect_code(0)?.text();
        if !said.contains("eth0") || !said.contains("169.254.1.1") || pastas()?.is_empty() {
            bail!("the container has {said:?}");
        }
        let state: Value = serde_json::from_str(&container.say("state", &[])?.text())?;
        let pid = match victim {
            "monitor" => state["pid"].as_i64().context("a pid")? as i32,
            "none" => 0,
            name => pid_of(name)?.cast_signed(),
        };
        if pid > 0 {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            no_pasta_stays().with_context(|| format!("{victim} was killed"))?;
        }
        drop(container);
        no_pasta_stays()?;
    }
    Ok(())
}
