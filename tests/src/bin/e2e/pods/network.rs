//! A pod's network as a plugin makes it: both families, and frames that are smaller than usual.

use super::pod::{OURS, Pod, RUNC, crictl};
use crate::command::{self, DEADLINE};
use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

crate::cases!(
    crate::Scope::AllOnce;
    names_are_resolved_by_the_pods_server,
    much_goes_each_way_by_both_families_in_small_frames,
    a_pod_without_ipv4_has_its_network,
    a_gibibyte_goes_each_way_by_both_families,
);

const NAME: &str = "e2e-small";
const FILE: &str = "/etc/cni/net.d/05-e2e.conflist";
const BRIDGE: &str = "e2e-small0";

/// One with what a tunnel leaves of a frame.
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "e2e-small", "plugins": [
    {"type": "bridge", "bridge": "e2e-small0", "isGateway": true, "mtu": 1400, "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "10.89.0.0/16"}], [{"subnet": "fd00:89::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}"#;

/// One of IPv6 alone.
const SIX: &str = r#"{"cniVersion": "1.0.0", "name": "e2e-small", "plugins": [
    {"type": "bridge", "bridge": "e2e-small0", "isGateway": true, "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "fd00:89::/64"}]], "routes": [{"dst": "::/0"}]}}]}"#;

/// Bytes that go each way, once or over and over.
const LOT: usize = 32 << 20;

/// A network above in place of the lab's, until it is dropped.
struct Small<'a>(&'a Context);

impl<'a> Small<'a> {
    fn configure(context: &'a Context, network: &str) -> Result<Self> {
        let small = Self(context);
        fs::write(FILE, network)?;
        small.await_configured(true)?;
        Ok(small)
    }

    /// containerd sees by itself that the directory has changed.
    fn await_configured(&self, there: bool) -> Result<()> {
        command::eventually("containerd has read the network's configuration", DEADLINE, || {
            Ok(crictl(self.0, &["info"])?.expect_code(0)?.text().contains(NAME) == there)
        })
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(FILE);
        let _ = command::output(Command::new("ip").args(["link", "delete", BRIDGE]));
        let _ = fs::remove_dir_all(format!("/var/lib/cni/networks/{NAME}"));
        if let Err(error) = self.await_configured(false) {
            println!("{error:#}");
        }
    }
}

/// Numbers that no two places share.
fn bytes() -> Vec<u8> {
    (0..LOT as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Those of a pod, IPv4 first.
fn addresses(pod: &Pod) -> Result<[IpAddr; 2]> {
    let text = crictl(pod.context(), &["inspectp", &pod.id])?.expect_code(0)?.text();
    let network = serde_json::from_str::<Value>(&text)?["status"]["network"].take();
    let parsed = |ip: &Value| -> Result<IpAddr> { Ok(ip.as_str().context("an address")?.parse()?) };
    Ok([parsed(&network["ip"])?, parsed(&network["additionalIps"][0]["ip"])?])
}

fn much_goes_each_way_by_both_families_in_small_frames(context: &Context) -> Result<()> {
    go_each_way(context, 1)
}

/// A server of names where the pods of [`NETWORK`] find their host, which knows every name at one address of IPv4.
const NAMES: &str = "10.89.0.1";

/// Answers what is asked until that is over.
fn answer(server: &UdpSocket, over: &AtomicBool) -> Result<()> {
    const A: [u8; 2] = [0, 1];
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut query = [0; 512];
    while !over.load(Ordering::Relaxed) {
        let Ok((len, from)) = server.recv_from(&mut query) else { continue };
        let query = &query[..len];
        // After the header the name, which ends with an empty label, then type and class (RFC 1035 §4.1).
        let name = query.iter().skip(12).position(|byte| *byte == 0).context("a name")?;
        let question = query.get(12..12 + name + 5).context("a question")?;
        let found = question[name + 1..name + 3] == A;
        let mut reply =
            [&query[..2], &[0x81, 0x80, 0, 1, 0, found.into(), 0, 0, 0, 0], question].concat();
        if found {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]);
        }
        server.send_to(&reply, from)?;
    }
    Ok(())
}

fn names_are_resolved_by_the_pods_server(context: &Context) -> Result<()> {
    let _small = Small::configure(context, NETWORK)?;
    let more = json!({"dns_config": {"servers": [NAMES], "searches": ["of.a.test"]}});
    let mut said = Vec::new();
    for handler in [RUNC, OURS] {
        let pod = Pod::run(context, handler, &more)?;
        let container = pod.sleeper()?;
        // The address is there with the first pod's bridge.
        let (server, over) = (UdpSocket::bind((NAMES, 53))?, AtomicBool::new(false));
        let (asked, answered) = std::thread::scope(|scope| {
            let answering = scope.spawn(|| answer(&server, &over));
            let asked = container.sh("cat /etc/resolv.conf; nslookup name.of.a.test 2>&1");
            over.store(true, Ordering::Relaxed);
            (asked, answering.join())
        });
        answered.map_err(|_| anyhow::anyhow!("the server of names panicked"))??;
        said.push(asked.with_context(|| handler.to_owned())?);
        pod.remove()?;
    }
    ensure!(said[0] == said[1], "runc says {:?}, ours {:?}", said[0], said[1]);
    ensure!(said[1].contains("10.1.2.3"), "{:?}", said[1]);
    Ok(())
}

fn a_gibibyte_goes_each_way_by_both_families(context: &Context) -> Result<()> {
    go_each_way(context, (1 << 30) / LOT)
}

/// The sum of a lot that comes so often.
fn sum_of(data: &[u8], times: usize) -> Result<String> {
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    let mut input = sum.stdin.take().context("its input")?;
    for _ in 0..times {
        input.write_all(data)?;
    }
    drop(input);
    Ok(String::from_utf8(sum.wait_with_output()?.stdout)?.trim().to_owned())
}

fn go_each_way(context: &Context, times: usize) -> Result<()> {
    let _small = Small::configure(context, NETWORK)?;
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let [v4, v6] = addresses(&pod)?;
    ensure!(v4.is_ipv4() && v6.is_ipv6(), "{v4} {v6}");
    let member = pod.sleeper()?;
    let said = member.sh("cat /sys/class/net/eth0/mtu; ip addr show eth0; ip -6 route")?;
    for words in ["1400\n", &v4.to_string(), &v6.to_string(), "default via fd00:89::1"] {
        ensure!(said.contains(words), "no {words:?}: {said}");
    }
    let data = bytes();
    for (own, gateway) in [(v4, "10.89.0.1"), (v6, "fd00:89::1")] {
        sent_each_way(&pod, own, gateway, (&data, times))?;
    }
    pod.remove()
}

/// Has a pod receive these bytes so many times, and send them back to this host at `gateway`.
pub fn sent_each_way(
    pod: &Pod,
    own: IpAddr,
    gateway: &str,
    (data, times): (&[u8], usize),
) -> Result<()> {
    let sum = sum_of(data, times)?;
    let receive = "nc -l -p 9000 | sha256sum";
    let receiver = pod.start(&["sh", "-c", receive], &Value::Null)?;
    let mut stream = None;
    command::eventually("the container listens", DEADLINE, || {
        stream = TcpStream::connect((own, 9000)).ok();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("a stream")?;
    for _ in 0..times {
        stream.write_all(data)?;
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(receiver.ended()? == 0);
    ensure!(receiver.log()? == sum, "{own} has received {}, not {sum}", receiver.log()?);
    // And back, from a copy: of a file of the host each small read would be a request.
    let listener = TcpListener::bind((gateway, 0))?;
    let port = listener.local_addr()?.port();
    let file = pod.directory().join("lot");
    fs::write(&file, data)?;
    let lot = serde_json::json!({"mounts": [{"host_path": file, "container_path": "/lot"}]});
    let lots = format!("for n in $(seq {times}); do cat /dev/shm/lot; done");
    let send = format!("cp /lot /dev/shm/lot; ({lots}) | nc {gateway} {port}");
    let _sender = pod.start(&["sh", "-c", &send], &lot)?;
    let (mut stream, from) = listener.accept()?;
    ensure!(from.ip() == own, "{from} is not {own}");
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut back = vec![0; data.len()];
    for time in 0..times {
        stream.read_exact(&mut back)?;
        if back != data {
            bail!("what {own} sent is not what it was given, the {time}th time");
        }
    }
    Ok(())
}

fn a_pod_without_ipv4_has_its_network(context: &Context) -> Result<()> {
    let _six = Small::configure(context, SIX)?;
    let pod = Pod::run(context, OURS, &Value::Null)?;
    let text = crictl(context, &["inspectp", &pod.id])?.expect_code(0)?.text();
    let network = serde_json::from_str::<Value>(&text)?["status"]["network"].take();
    let own: IpAddr = network["ip"].as_str().context("an address")?.parse()?;
    ensure!(own.is_ipv6(), "{network}");
    let serve = "ip -4 addr show eth0 | grep -c inet; ip -4 route; ping -6 -c 1 fd00:89::1 > /dev/null && \
                 echo to the host; echo from the pod | nc -l -p 9000";
    let member = pod.start(&["sh", "-c", serve], &Value::Null)?;
    let mut said = String::new();
    command::eventually("the container answers", DEADLINE, || {
        match TcpStream::connect((own, 9000)) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.read_to_string(&mut said)?;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    })?;
    ensure!(said == "from the pod\n", "{said:?}");
    ensure!(member.ended()? == 0 && member.log()? == "0\nto the host", "{:?}", member.log()?);
    pod.remove()
}
