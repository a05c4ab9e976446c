//! A sandbox whose network is that of a namespace of the host's: the guest has the namespace's interfaces.

use crate::bundle::{Background, Bundle, config};
use crate::command::{self, DEADLINE, Running};
use crate::context::{Container, Context};
use crate::crash;
use crate::update::update;
use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

crate::cases!(
    crate::Scope::OneOrEach;
    a_container_has_the_interface_of_its_namespace,
    a_new_namespace_is_filled_by_who_made_the_container;
    crate::Scope::Once;
    interfaces_that_come_after_the_create_are_there_at_the_start,
    the_hosts_own_is_refused_where_an_engine_asks_for_it,
    the_engines_resolver_answers_at_its_own_address,
    a_killed_shim_leaves_the_namespace_as_it_was;
    crate::Scope::AllOnce;
    a_hook_brings_an_interface_and_a_sysctl_is_its,
    ipv6_goes_as_well,
    a_lot_goes_each_way_whole,
    two_interfaces_with_a_small_mtu,
    a_gateway_that_is_no_neighbour_by_address,
    it_lasts_while_the_machine_grows,
    namespaces_that_can_not_be_a_guests_are_named,
    packet_filters_of_a_namespace_are_warned_of,
    devices_of_the_hosts_move_to_the_guest,
);

/// Bytes that are sent each way.
const LOT: usize = 64 << 20;

/// A network namespace with a pair of interfaces to this one for each number; gone in the end.
pub struct Net {
    /// Its name.
    pub name: String,
    /// What the addresses of each interface's network begin with.
    numbers: Vec<u8>,
}

/// `ip ARGS…`.
fn ip(args: &str) -> Result<String> {
    let mut ip = Command::new("ip");
    Ok(command::output(ip.args(args.split(' ')))?
        .expect_code(0)
        .with_context(|| format!("ip {args}"))?
        .text())
}

impl Net {
    /// Without interfaces.
    fn empty(context: &Context) -> Result<Self> {
        let net = Self { name: context.fresh_id(), numbers: Vec::new() };
        ip(&format!("netns add {}", net.name))?;
        Ok(net)
    }

    /// With one interface, eth0, and a default route.
    pub fn new(context: &Context) -> Result<Self> {
        let mut net = Self::empty(context)?;
        net.add(1500)?;
        let gateway = net.host(0);
        net.ip(&format!("route add default via {gateway}"))?;
        Ok(net)
    }

    /// Adds the next interface: eth0, eth1.
    fn add(&mut self, mtu: u32) -> Result<()> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let (number, index) = (NEXT.fetch_add(1, Ordering::Relaxed), self.numbers.len());
        let (ours, name) = (format!("e2eveth{number}"), &self.name);
        ip(&format!(
            "link add {ours} mtu {mtu} type veth peer name eth{index} mtu {mtu} netns {name}"
        ))?;
        self.numbers.push(number);
        ip(&format!("addr add {}/24 dev {ours}", self.host(index)))?;
        ip(&format!("addr add fd00:88:{number}::1/64 dev {ours} nodad"))?;
        ip(&format!("link set {ours} up"))?;
        self.ip(&format!("addr add {}/24 brd + dev eth{index}", self.guest(index)))?;
        self.ip(&format!("addr add fd00:88:{number}::2/64 dev eth{index} nodad"))?;
        self.ip(&format!("link set eth{index} up"))?;
        Ok(())
    }

    fn host(&self, index: usize) -> String {
        format!("10.88.{}.1", self.numbers[index])
    }

    /// The address of an interface.
    pub fn guest(&self, index: usize) -> String {
        format!("10.88.{}.2", self.numbers[index])
    }

    /// `ip ARGS…` in the namespace.
    fn ip(&self, args: &str) -> Result<String> {
        ip(&format!("-n {} {args}", self.name))
    }

    fn flag(&self) -> String {
        format!("--with-ns=network:/run/netns/{}", self.name)
    }

    /// Of an interface, as Linux writes it.
    fn mac(&self, interface: &str) -> Result<String> {
        let said = self.ip(&format!("-o link show {interface}"))?;
        let mac = said.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(mac.with_context(|| format!("no MAC in {said}"))?.to_owned())
    }

    /// Removes a container, and sees that the namespace is as it was.
    fn remove(&self, container: Container<'_>) -> Result<()> {
        container.remove()?;
        self.is_clean()
    }

    /// Sees that it is as it was.
    pub fn is_clean(&self) -> Result<()> {
        let name = &self.name;
        let clean = || -> Result<bool> {
            let links = self.ip("-o link")?;
            let mut tc = Command::new("tc");
            let qdiscs = command::output(tc.args(["-n", name, "qdisc"]))?.expect_code(0)?.text();
            Ok(!links.contains("kata-like") && !qdiscs.contains("ingress"))
        };
        command::eventually("taps and redirections are gone", DEADLINE, clean)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for number in &self.numbers {
            let _ = ip(&format!("link del e2eveth{number}"));
        }
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn contains(said: &str, all: &[&str]) -> Result<()> {
    match all.iter().find(|words| !said.contains(**words)) {
        Some(words) => bail!("{words:?} is not in {said:?}"),
        None => Ok(()),
    }
}

/// Whether an address answers, from here.
fn ping(to: &str) -> Result<()> {
    let mut ping = Command::new("ping");
    command::output(ping.args(["-c", "3", "-W", "10", to]))?.expect_code(0).map(drop)
}

fn in_container(container: &Container<'_>, args: &[&str]) -> Result<String> {
    Ok(container.exec(args)?.expect_code(0)?.text())
}

fn a_container_has_the_interface_of_its_namespace(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let (host, guest, mac) = (net.host(0), net.guest(0), net.mac("eth0")?);
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    let link = in_container(&container, &["ip", "addr", "show", "dev", "eth0"])?;
    contains(&link, &[&mac, "mtu 1500", "UP", &format!("{guest}/24"), "brd 10.88."])?;
    let routes = in_container(&container, &["ip", "route"])?;
    contains(&routes, &[&format!("default via {host} dev eth0"), "/24 dev eth0"])?;
    in_container(&container, &["ping", "-c", "3", "-W", "10", &host])?;
    ping(&guest)?;
    let names = in_container(&container, &["ls", "/sys/class/net"])?;
    if names.split_whitespace().collect::<Vec<_>>() != ["eth0", "lo"] {
        bail!("the container has {names:?}");
    }
    net.remove(container)
}

/// Numbers that no two places share, so that nothing can be in another's.
fn bytes() -> Vec<u8> {
    (0..LOT as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn a_lot_goes_each_way_whole(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let data = bytes();
    let sum = Running::start(&mut Command::new("sha256sum"), data.clone())?;
    let sum = sum.finish(DEADLINE)?.expect_code(0)?.text();
    let container = context.container().flag(net.flag());
    let running = container.start(&["sh", "-c", "nc -l -p 9000 | sha256sum"])?;
    let mut stream = None;
    command::eventually("the container listens", DEADLINE, || {
        stream = TcpStream::connect((net.guest(0), 9000)).ok();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("a stream")?;
    stream.write_all(&data)?;
    stream.shutdown(Shutdown::Write)?;
    let told = running.finish(DEADLINE)?.expect_code(0)?.text();
    if told != sum {
        bail!("the guest has received {told}, and was sent {sum}");
    }
    // And back what it is given.
    let listener = TcpListener::bind((net.host(0), 0))?;
    let (host, port) = (net.host(0), listener.local_addr()?.port());
    let send = format!("nc {host} {port}");
    let running = context.container().flag(net.flag()).stdin(data.clone());
    let running = running.start(&["sh", "-c", &send])?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back)?;
    if back != data {
        bail!("what the guest sent is not what it was given");
    }
    drop(stream);
    running.finish(DEADLINE)?;
    net.is_clean()?;
    segments_are_left_to_the_end(&net)
}

/// Neither side cuts what it sends into packets, nor sums them up: nothing is between them that would have to.
fn segments_are_left_to_the_end(net: &Net) -> Result<()> {
    let said: Value = serde_json::from_str(&net.ip("-s -j link show eth0")?)?;
    for way in ["rx", "tx"] {
        let counted = &said[0]["stats64"][way];
        let of = |what: &str| counted[what].as_u64().context("a number");
        let (bytes, packets) = (of("bytes")?, of("packets")?);
        // With as many of them acknowledgements of the other way.
        if bytes < LOT as u64 || bytes / packets.max(1) < 3000 {
            bail!("{way}: {packets} packets for {bytes} bytes");
        }
    }
    Ok(())
}

fn ipv6_goes_as_well(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let prefix = format!("fd00:88:{}:", net.numbers[0]);
    net.ip(&format!("route add default via {prefix}:1"))?;
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    let link = in_container(&container, &["ip", "-6", "addr", "show", "dev", "eth0"])?;
    contains(&link, &[&format!("{prefix}:2/64"), "scope link"])?;
    contains(&in_container(&container, &["ip", "-6", "route"])?, &["default via"])?;
    in_container(&container, &["ping", "-6", "-c", "3", "-W", "10", &format!("{prefix}:1")])?;
    ping(&format!("{prefix}:2"))?;
    net.remove(container)
}

fn two_interfaces_with_a_small_mtu(context: &Context) -> Result<()> {
    let mut net = Net::empty(context)?;
    net.add(1400)?;
    net.add(9000)?;
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    for (index, mtu) in [(0, 1400), (1, 9000)] {
        let name = format!("eth{index}");
        let link = in_container(&container, &["ip", "addr", "show", "dev", &name])?;
        contains(&link, &[&net.mac(&name)?, &format!("mtu {mtu}"), &net.guest(index)])?;
        // What just fits arrives whole, and nothing longer is made.
        let size = (mtu - 28).to_string();
        in_container(&container, &["ping", "-c", "2", "-W", "10", "-s", &size, &net.host(index)])?;
        ping(&net.guest(index))?;
    }
    net.remove(container)
}

fn a_gateway_that_is_no_neighbour_by_address(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let number = net.numbers[0];
    let said = ip(&format!("-o link show e2eveth{number}"))?;
    let mac = said.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac = mac.context("a MAC")?;
    net.ip("route del default")?;
    net.ip("route add 169.254.1.1 dev eth0 scope link")?;
    net.ip("route add default via 169.254.1.1 dev eth0 metric 50")?;
    net.ip(&format!("neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"))?;
    ip(&format!("addr add 192.0.2.{number}/32 dev lo"))?;
    let tested = || {
        let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
        let routes = in_container(&container, &["ip", "route"])?;
        contains(
            &routes,
            &["default via 169.254.1.1 dev eth0", "metric 50", "169.254.1.1 dev eth0 scope link"],
        )?;
        contains(&in_container(&container, &["ip", "neigh"])?, &[mac, "PERMANENT"])?;
        let far = format!("192.0.2.{number}");
        in_container(&container, &["ping", "-c", "3", "-W", "10", &far])?;
        net.remove(container)
    };
    let outcome = tested();
    ip(&format!("addr del 192.0.2.{number}/32 dev lo"))?;
    outcome
}

/// `ctr` has CNI plugins fill the namespace of the task's process once that is created.
fn a_new_namespace_is_filled_by_who_made_the_container(context: &Context) -> Result<()> {
    let look = "ip -o -4 addr show eth0 | grep -o 10.88.0.; ping -q -c 2 10.88.0.1 | grep -o '2 packets received'";
    let run = context.container().flag("--cni");
    let said = run.output(&["sh", "-c", look])?.expect_code(0)?.text();
    if said != "10.88.0.\n2 packets received" {
        bail!("the container says {said:?}");
    }
    Ok(())
}

fn interfaces_that_come_after_the_create_are_there_at_the_start(context: &Context) -> Result<()> {
    let mut net = Net::empty(context)?;
    let bundle = Bundle::new(context, &[])?;
    let mut config = config(&["sleep", "1000000"]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    let path = format!("/run/netns/{}", net.name);
    namespaces.push(json!({"type": "network", "path": path}));
    bundle.write_config(&config)?;
    let container = Background::of(context, "/usr/bin/kata-like", &bundle);
    container.begin("create", &[])?;
    net.add(1500)?;
    container.say("start", &[])?.expect_code(0)?;
    let tested = ping(&net.guest(0));
    drop(container);
    tested.and_then(|()| net.is_clean())
}

fn it_lasts_while_the_machine_grows(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    ping(&net.guest(0))?;
    // Memory is added while frames come and go: each device is stopped and goes on.
    let mut flood = Command::new("ping");
    flood.args(["-i", "0.05", "-c", "100", "-W", "10", &net.guest(0)]);
    let flood = Running::start(&mut flood, Vec::new())?;
    update(context, &container, r#"{"memory": {"limit": 419430400}}"#)?;
    flood.finish(DEADLINE)?.expect_code(0)?;
    in_container(&container, &["ping", "-c", "3", "-W", "10", &net.host(0)])?;
    net.remove(container)
}

fn a_killed_shim_leaves_the_namespace_as_it_was(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    ping(&net.guest(0))?;
    let shim = crate::confinement::pid_of("containerd-shim-kata-like-v2")?;
    kill(Pid::from_raw(shim.cast_signed()), Signal::SIGKILL)?;
    net.is_clean()?;
    command::eventually("the task is gone or stopped", DEADLINE, || {
        Ok(container.status()?.is_none_or(|status| status == "STOPPED"))
    })?;
    drop(container);
    crash::remove_fifos_of_ctr()?;
    // The next sandbox can have it.
    let said = context.container().flag(net.flag()).output(&["ping", "-c", "1", &net.host(0)])?;
    said.expect_code(0)?;
    net.is_clean()
}

fn the_hosts_own_is_refused_where_an_engine_asks_for_it(context: &Context) -> Result<()> {
    let run = context.container().flag("--net-host");
    run.output(&["true"])?.expect_error(&["host's network namespace"])?;
    // As Docker's `--ipc host`, which names no namespace.
    let asked = |spec: &mut Value| {
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|one| one["type"] != "ipc");
        }
    };
    match crash::with_spec(context, asked, |_| Ok(())) {
        Ok(()) => bail!("a container in the host's IPC namespace was made"),
        Err(error) => contains(&format!("{error:#}"), &["host's IPC namespace"]),
    }
}

/// What a hook puts in the new namespace the guest has, with the sysctls that the configuration has for it.
fn a_hook_brings_an_interface_and_a_sysctl_is_its(context: &Context) -> Result<()> {
    let look = "cat /proc/sys/net/ipv4/conf/hooked/forwarding; ip -o -4 addr show hooked; \
        ping -q -c 1 10.88.200.1";
    let bundle = Bundle::new(context, &["sh", "-c", look])?;
    let mut config = config(&["sh", "-c", look]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.push(json!({"type": "network"}));
    let rights = ["CAP_NET_RAW"];
    config["process"]["capabilities"] =
        json!({"bounding": rights, "effective": rights, "permitted": rights});
    config["linux"]["sysctl"] = json!({"net.ipv4.conf.hooked.forwarding": "1"});
    let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); \
        ip link add e2ehook type veth peer name hooked netns $pid && \
        ip addr add 10.88.200.1/24 dev e2ehook && ip link set e2ehook up && \
        nsenter -t $pid -n sh -c 'ip addr add 10.88.200.2/24 dev hooked; ip link set hooked up'";
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script],
        "env": [path]}]});
    bundle.write_config(&config)?;
    let said = bundle.run()?.expect_code(0)?.text();
    contains(&said, &["1\n", "inet 10.88.200.2/24", "1 packets received"])?;
    command::eventually("the interface is gone with the namespace", DEADLINE, || {
        Ok(!ip("-o link")?.contains("e2ehook"))
    })
}

fn namespaces_that_can_not_be_a_guests_are_named(context: &Context) -> Result<()> {
    for (path, words) in [
        ("/proc/1/ns/net", "the host's own network namespace"),
        ("/no/such", "network namespace /no/such"),
        ("/proc/1/ns/uts", "it is no network namespace"),
    ] {
        let run = context.container().flag(format!("--with-ns=network:{path}"));
        run.output(&["true"])?.expect_error(&[words])?;
    }
    // One interface is one guest's.
    let net = Net::new(context)?;
    let container = context.container().flag(net.flag()).detached(&["sleep", "1000000"])?;
    let second = context.container().flag(net.flag()).output(&["true"])?;
    second.expect_error(&["network interface eth0", "redirected already"])?;
    ping(&net.guest(0))?;
    net.remove(container)?;
    // And what a container on the host's kernel has is not taken from it.
    let bundle = Bundle::new(context, &[])?;
    let own = format!("/run/netns/{}", net.name);
    let mut config = config(&["sleep", "1000000"]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.push(json!({"type": "network", "path": own}));
    bundle.write_config(&config)?;
    let web = Background::run(context, "runc", &bundle)?;
    let state: Value = serde_json::from_str(&web.say("state", &[])?.expect_code(0)?.text())?;
    let of_process = format!("/proc/{}/ns/net", state["pid"]);
    for path in [of_process, own] {
        let run = context.container().flag(format!("--with-ns=network:{path}"));
        let words = format!("network namespace {path} is another's: process {} ", state["pid"]);
        run.output(&["true"])?.expect_error(&[&words])?;
        ping(&net.guest(0))?;
    }
    Ok(())
}

/// Into a namespace that has a path they stay when the container is gone; with one of the sandbox's own they go.
fn devices_of_the_hosts_move_to_the_guest(context: &Context) -> Result<()> {
    let mut net = Net::empty(context)?;
    let (name, mac) = (format!("e2edev{}", std::process::id() % 1000), "02:00:00:00:00:55");
    let make = || {
        ip(&format!("link add {name} address {mac} mtu 1489 type dummy"))?;
        ip(&format!("addr add 192.0.2.7/32 dev {name}"))?;
        ip(&format!("addr add 192.0.2.9/32 scope link dev {name}"))
    };
    let bundle = Bundle::new(context, &[])?;
    let mut config = config(&["ip", "addr", "show", "dev", "moved0"]);
    config["linux"]["netDevices"] = json!({&name: {"name": "moved0"}});
    bundle.write_config(&config)?;
    bundle.run()?.expect_error(&["/linux/netDevices", "without a NET namespace"])?;

    let mut run = |namespace: Value| -> Result<()> {
        make()?;
        let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(namespace);
        bundle.write_config(&config)?;
        let said = bundle.run()?.expect_code(0)?.text();
        contains(&said, &[mac, "mtu 1489", "UP", "192.0.2.7/32"])?;
        if said.contains("192.0.2.9") {
            bail!("an address of the link alone has moved: {said}");
        }
        match ip(&format!("link show {name}")) {
            Ok(said) => bail!("it has stayed on the host: {said}"),
            Err(_) => Ok(()),
        }
    };
    run(json!({"type": "network"}))?;
    // Another beside it, which is there before.
    net.add(1500)?;
    run(json!({"type": "network", "path": format!("/run/netns/{}", net.name)}))?;
    contains(&net.ip("addr show dev moved0")?, &[mac, "192.0.2.7/32"])?;
    net.is_clean()
}

/// Of tables without rules nobody has to be warned.
fn packet_filters_of_a_namespace_are_warned_of(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let nft = |words: &str| {
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &net.name, "nft", words]);
        command::output(&mut nft)?.expect_code(0).map(drop)
    };
    let said = || -> Result<bool> {
        let mark = usize::try_from(fs::metadata(context.containerd.log())?.len())?;
        net.remove(context.container().flag(net.flag()).detached(&["sleep", "1000000"])?)?;
        let log = fs::read(context.containerd.log())?;
        let log = String::from_utf8_lossy(log.get(mark..).unwrap_or_default());
        Ok(log.contains(&format!("/run/netns/{} holds nftables rules", net.name)))
    };
    nft("add table inet mesh")?;
    nft("add chain inet mesh out { type filter hook output priority 0; }")?;
    if said()? {
        bail!("a warning of no rule");
    }
    nft("add rule inet mesh out meta l4proto tcp accept")?;
    if !said()? {
        bail!("no warning of a rule");
    }
    Ok(())
}

/// The answer to a question about any name: one address, by the name that was asked for.
fn answer(query: &[u8]) -> Vec<u8> {
    // RFC 1035: a header that answers one question, the question, a pointer to its name, type A, class IN, a minute.
    let question = query.get(12..).unwrap_or_default();
    let end = question.iter().position(|byte| *byte == 0).map_or(0, |end| end + 5);
    let asks_ipv4 = question.get(..end).is_some_and(|question| question.ends_with(&[0, 1, 0, 1]));
    let record: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77];
    let record = if asks_ipv4 { record } else { &[] };
    let head = [0x81, 0x80, 0, 1, 0, u8::from(asks_ipv4), 0, 0, 0, 0];
    [&query[..2], &head, &question[..end], record].concat()
}

/// As Docker has it: in the container's network namespace, at an address that resolv.conf names.
fn the_engines_resolver_answers_at_its_own_address(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    net.ip("link set lo up")?;
    let bind = || -> Result<(UdpSocket, TcpListener)> {
        setns(File::open(format!("/run/netns/{}", net.name))?, CloneFlags::CLONE_NEWNET)?;
        let port = "127.0.0.11:53";
        Ok((UdpSocket::bind(port)?, TcpListener::bind(port)?))
    };
    let bound = std::thread::scope(|scope| scope.spawn(bind).join());
    let (datagrams, connections) = bound.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length @ 12.., from)) = datagrams.recv_from(&mut query) {
            let _ = datagrams.send_to(&answer(&query[..length]), from);
        }
    });
    let by_tcp = std::thread::spawn(move || -> Result<()> {
        let (mut connection, _) = connections.accept()?;
        let mut asked = [0; 5];
        connection.read_exact(&mut asked)?;
        Ok(connection.write_all(&asked)?)
    });
    let file = format!("/tmp/{}", context.fresh_id());
    fs::write(&file, "nameserver 127.0.0.11\n")?;
    let mount = format!("--mount=type=bind,src={file},dst=/etc/resolv.conf,options=rbind:ro");
    let run = context.container().flag(net.flag()).flag(mount);
    let look = "nslookup any.lab.test; echo word | nc -w 10 127.0.0.11 53";
    let said = run.output(&["sh", "-c", look])?.expect_code(0)?.text();
    fs::remove_file(file)?;
    contains(&said, &["192.0.2.77", "word"])?;
    by_tcp.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}
