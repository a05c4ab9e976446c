//! A pod as CRI-O makes it (its internal/oci/runtime_vm.go): it calls the shim itself, once for each container, names
//! nobody who takes events, speaks version 2 of the task API, and calls Shutdown after each Delete.

use crate::bundle::{self, Bundle};
use crate::command::{self, DEADLINE};
use crate::confinement::pid_of;
use crate::context::Context;
use crate::leaks;
use crate::network::Net;
use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::Client;
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, Status, WaitRequest,
    WaitResponse,
};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use protobuf::Message;
use serde_json::json;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use ttrpc::Request;

crate::cases!(
    crate::Scope::Once;
    a_pod_of_cri_os_is_one_machine_that_ends_with_its_last_container,
);

/// A container, and the connection to the shim that its `start` has named.
struct Started {
    id: String,
    bundle: Bundle,
    address: String,
    client: Client,
    /// CRI-O reads the log there.
    _log: File,
}

impl Started {
    /// Calls `start` for a pause container, or one of pod `pod`.
    fn new(context: &Context, net: &Net, pod: Option<&str>, args: &[&str]) -> Result<Self> {
        let id = context.fresh_id();
        let (kind, pod) = pod.map_or(("sandbox", id.as_str()), |pod| ("container", pod));
        let bundle = Bundle::new(context, args)?;
        let mut config = bundle::config(args);
        config["root"]["path"] = json!(bundle.0.join("rootfs"));
        config["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": pod});
        // It makes the pod's namespaces, and all its containers join them.
        let path = |kind: &str| format!("/run/{kind}ns/{}", net.name);
        config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"},
            {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")},
            {"type": "uts", "path": path("uts")}]);
        bundle.write_config(&config)?;
        let log = bundle.0.join("log");
        nix::unistd::mkfifo(&log, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let log = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&log)?;
        // Some versions take for the address whatever comes by either.
        let (mut answer, both) = std::io::pipe()?;
        let mut start = Command::new("containerd-shim-kata-like-v2");
        start
            .args(["-namespace", "default", "-address", "", "-publish-binary", "/usr/bin/crio"])
            .args(["-id", &id, "start"])
            .envs([("GOMAXPROCS", "2"), ("MAX_SHIM_VERSION", "2"), ("TTRPC_ADDRESS", "")])
            .envs([("GRPC_ADDRESS", ""), ("NAMESPACE", "default")])
            .current_dir(&bundle.0)
            .stdin(Stdio::null())
            .stdout(both.try_clone()?)
            .stderr(both);
        let status = start.status()?;
        drop(start);
        let mut address = String::new();
        answer.read_to_string(&mut address)?;
        ensure!(status.success(), "start: {status}: {address}");
        let client =
            Client::connect(&address).with_context(|| format!("connect to {address:?}"))?;
        Ok(Self { id, bundle, address, client, _log: log })
    }

    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        let request = Request {
            service: "containerd.task.v2.Task".into(),
            method: method.into(),
            timeout_nano: 60_000_000_000,
            payload: request.write_to_bytes()?,
            ..Default::default()
        };
        let answer = self.client.request(request);
        let answer = answer.with_context(|| format!("{method} {}", self.id))?;
        Ok(A::parse_from_bytes(&answer.payload)?)
    }

    fn run(&self) -> Result<()> {
        let (id, bundle) = (self.id.clone(), self.bundle.0.display().to_string());
        let create = CreateTaskRequest { id: id.clone(), bundle, ..Default::default() };
        self.call::<CreateTaskResponse>("Create", &create)?;
        self.call::<StartResponse>("Start", &StartRequest { id, ..Default::default() })?;
        Ok(())
    }

    fn runs(&self) -> Result<bool> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.call::<StateResponse>("State", &request)?.status == Status::RUNNING.into())
    }

    fn kill(&self) -> Result<()> {
        let request = KillRequest { id: self.id.clone(), signal: 9, ..Default::default() };
        self.call::<Empty>("Kill", &request).map(drop)
    }

    /// Waits for its end, and removes it; its exit code.
    fn remove(self) -> Result<u32> {
        let id = &self.id;
        let ended = self
            .call::<WaitResponse>("Wait", &WaitRequest { id: id.into(), ..Default::default() })?;
        let delete = DeleteRequest { id: id.into(), ..Default::default() };
        self.call::<DeleteResponse>("Delete", &delete)?;
        let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
        // The connection may end before the answer to the last.
        match self.call::<Empty>("Shutdown", &shutdown) {
            Err(error) if !format!("{error:#}").contains("closed") => return Err(error),
            _ => {}
        }
        Ok(ended.exit_status)
    }
}

fn a_pod_of_cri_os_is_one_machine_that_ends_with_its_last_container(
    context: &Context,
) -> Result<()> {
    let lived = live(context);
    if lived.is_err() {
        leaks::end_shims_of_tests()?;
    }
    lived
}

fn live(context: &Context) -> Result<()> {
    let net = Net::new(context)?;
    let pause = Started::new(context, &net, None, &["sleep", "1000000"])?;
    pause.run()?;
    let member = |args: &[&str]| {
        let member = Started::new(context, &net, Some(&pause.id), args)?;
        ensure!(member.address == pause.address, "{} is of {}", member.address, pause.address);
        member.run()?;
        Ok(member)
    };
    let first = member(&["sh", "-c", "echo shared > /proc/sys/kernel/hostname; sleep 1000000"])?;
    let script = "until grep -q shared /proc/sys/kernel/hostname; do sleep 0.1; done; ";
    let look = format!("ip addr show eth0 | grep -qF {}/24 && exit 7", net.guest(0));
    let second = member(&["sh", "-c", &format!("{script}{look}")])?;
    let machine = pid_of("kata-like-vmm")?;
    ensure!(second.remove()? == 7);
    ensure!(first.runs()? && pause.runs()?, "they ended with another container");
    first.kill()?;
    ensure!(first.remove()? == 137);
    ensure!(pause.runs()? && pid_of("kata-like-vmm")? == machine, "the pod ended too early");
    pause.kill()?;
    ensure!(pause.remove()? == 137);
    command::eventually("the pod has ended", DEADLINE, || Ok(leaks::our_processes()?.is_empty()))?;
    net.is_clean()
}
