//! A sandbox whose VMM and agent are played by the test: the control socket and the ttrpc service are real.

mod kill;
mod network;
mod pods;
mod promise;
mod resolver;

use super::*;
use crate::host::persist::SandboxState;
use crate::io::Endpoint;
use crate::oci::pod::Part;
use crate::sandbox::event::SandboxEvent;
use crate::vm::Control;
use oci_spec::runtime::LinuxResources;
use protocol::agent as api;
use protocol::agent_ttrpc::{Agent as AgentService, create_agent};
use protocol::control::{self, Command, Event as VmEvent, ExitReason};
use protocol::ports::{self, ForwardPreamble};
use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use ttrpc::asynchronous::{Server, TtrpcContext};

const TO_SNAPSHOT: Fixed = Fixed { writes: Writes::ToSnapshot, slots: 0, vhost_net: None };

/// A guest: containers run until they are signalled; what is written to STDIO streams is given back.
#[derive(Default)]
struct Guest {
    exits: Mutex<HashMap<String, Arc<Exiting>>>,
    /// Containers and execs that take longer to make than their callers wait; whether they are made by now.
    late: Mutex<HashMap<String, bool>>,
    /// Containers that stand still.
    paused: Mutex<HashSet<String>>,
    interfaces: Mutex<Vec<api::NetworkInterface>>,
    sysctls: Mutex<HashMap<String, String>>,
    /// How often it was told to listen as a resolver.
    resolvers: AtomicU64,
    /// Its vCPUs, and the bytes that were added to its memory, as it was told last.
    size: Mutex<(u32, u64)>,
}

/// The most that the host has beside what machines start with, MiB.
const SPARE_MIB: u64 = 512;

#[derive(Default)]
struct Exiting {
    status: Mutex<Option<u32>>,
    changed: Notify,
}

impl Guest {
    fn process(&self, id: &str, exec: &str) -> Arc<Exiting> {
        self.exits.lock().unwrap().entry(format!("{id}/{exec}")).or_default().clone()
    }

    fn delete_late(&self, id: &str) -> ttrpc::Result<api::Empty> {
        let mut late = self.late.lock().unwrap();
        if let Some(made @ false) = late.get_mut(id) {
            *made = true;
            return refused(ttrpc::Code::FAILED_PRECONDITION, "it is being made");
        }
        late.remove(id);
        Ok(api::Empty::new())
    }
}

fn refused<T>(code: ttrpc::Code, text: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, text)))
}

#[async_trait::async_trait]
impl AgentService for Guest {
    async fn setup_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::SetupSandboxRequest,
    ) -> ttrpc::Result<api::Empty> {
        assert!(request.entropy.len() >= 32 && request.entropy != vec![0; 32]);
        Ok(api::Empty::new())
    }

    /// Of three processes two at once; of container `endless` the same ones again and again.
    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: api::ListProcessesRequest,
    ) -> ttrpc::Result<api::ListProcessesResponse> {
        let after = if request.container_id == "endless" { 0 } else { request.after };
        let pids = [5u32, 7, 9].into_iter().filter(|pid| *pid > after).take(2);
        let process = |pid| api::ProcessInfo { pid, ..Default::default() };
        let processes: Vec<_> = pids.map(process).collect();
        let more = processes.last().is_some_and(|last| last.pid < 9);
        Ok(api::ListProcessesResponse { processes, more, ..Default::default() })
    }

    async fn setup_network(
        &self,
        _: &TtrpcContext,
        request: api::SetupNetworkRequest,
    ) -> ttrpc::Result<api::Empty> {
        if request.interfaces.iter().any(|interface| interface.name == "bad0") {
            return refused(ttrpc::Code::INTERNAL, "setting up the network interface bad0");
        }
        self.interfaces.lock().unwrap().extend(request.interfaces);
        Ok(api::Empty::new())
    }

    async fn serve_resolver(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::Empty> {
        self.resolvers.fetch_add(1, Ordering::Relaxed);
        Ok(api::Empty::new())
    }

    async fn resize_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::SandboxCapacity,
    ) -> ttrpc::Result<api::SandboxCapacity> {
        *self.size.lock().unwrap() = (request.vcpus, request.added_bytes);
        Ok(request)
    }

    async fn set_sysctls(
        &self,
        _: &TtrpcContext,
        request: api::SetSysctlsRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sysctls.lock().unwrap().extend(request.sysctls);
        Ok(api::Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::ProcessStarted> {
        let spec: Spec = serde_json::from_slice(&request.spec_json).unwrap();
        match spec.process().as_ref().unwrap().args().as_ref().unwrap()[0].as_str() {
            "missing" => refused(ttrpc::Code::INVALID_ARGUMENT, "exec: \"missing\": not found")?,
            "bad" => refused(ttrpc::Code::INTERNAL, "it can't be made")?,
            "joins" if request.joins_pids_of != "s" => refused(ttrpc::Code::INTERNAL, "alone")?,
            "joins-a" if request.joins_pids_of != "a" => refused(ttrpc::Code::INTERNAL, "alone")?,
            "joins-pod" if !request.joins_pids_of_pod => refused(ttrpc::Code::INTERNAL, "alone")?,
            "late" => {
                self.late.lock().unwrap().insert(request.container_id, false);
                // What the caller's side says when its time is over.
                refused(ttrpc::Code::DEADLINE_EXCEEDED, "")?;
            }
            _ => {}
        }
        Ok(api::ProcessStarted { pid: 9, ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::ProcessStarted> {
        if request.process_json.windows(7).any(|text| text == b"missing") {
            return refused(ttrpc::Code::INVALID_ARGUMENT, "not found");
        }
        if request.process_json.windows(4).any(|text| text == b"late") {
            self.late.lock().unwrap().insert(request.exec_id, false);
            return refused(ttrpc::Code::DEADLINE_EXCEEDED, "");
        }
        Ok(api::ProcessStarted { pid: 21, ..Default::default() })
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        let is_late = request.container_id == "late";
        self.paused.lock().unwrap().insert(request.container_id);
        if is_late { refused(ttrpc::Code::DEADLINE_EXCEEDED, "") } else { Ok(api::Empty::new()) }
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        self.paused.lock().unwrap().remove(&request.container_id);
        Ok(api::Empty::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: api::SignalProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        match request.container_id.as_str() {
            "deaf" => return Ok(api::Empty::new()),
            "denied" => return refused(ttrpc::Code::NOT_FOUND, "no such process"),
            "hung" => return refused(ttrpc::Code::DEADLINE_EXCEEDED, ""),
            _ => {}
        }
        let process = self.process(&request.container_id, &request.exec_id);
        *process.status.lock().unwrap() = Some(128 + request.signal);
        process.changed.notify_waiters();
        Ok(api::Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::ProcessExit> {
        let process = self.process(&request.container_id, &request.exec_id);
        loop {
            let changed = process.changed.notified();
            if let Some(exit_status) = *process.status.lock().unwrap() {
                return Ok(api::ProcessExit { exit_status, ..Default::default() });
            }
            changed.await;
        }
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: api::WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<api::OutOfMemory> {
        if request.container_id == "flood" {
            let kills = request.seen + 1;
            return Ok(api::OutOfMemory { kills, ..Default::default() });
        }
        std::future::pending().await
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        self.delete_late(&request.container_id)
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::Empty> {
        self.delete_late(&request.exec_id)
    }
}

/// The VMM's side: joins streams to the guest's server or echoes them, until the socket ends or `end` is sent.
fn play_vmm(socket: &OwnedFd, rpc: &Path) {
    let log = UnixStream::pair().unwrap();
    control::send(socket, &VmEvent::Accepted { port: ports::LOG }, &[log.1.as_fd()]).unwrap();
    let (mut streams, mut taps) = (Vec::new(), HashMap::new());
    while let Ok((command, fds)) = control::receive::<Command>(socket) {
        match command {
            Command::Connect { port: ports::FORWARD } => {
                let host = UnixStream::from(fds.into_iter().next().unwrap());
                streams.push(host.try_clone().unwrap());
                std::thread::spawn(move || listens_at_80(host));
            }
            Command::Connect { port } => {
                let host = UnixStream::from(fds.into_iter().next().unwrap());
                let guest = (port == ports::RPC).then(|| UnixStream::connect(rpc).unwrap());
                streams.push(host.try_clone().unwrap());
                join(host, guest);
            }
            Command::AttachNetwork { .. } => {
                let device = 4 + taps.len() as u64;
                taps.insert(device, fds);
                control::send(socket, &VmEvent::Done { outcome: Ok(device) }, &[]).unwrap();
            }
            Command::DetachNetwork { device } => {
                taps.remove(&device.into()).unwrap();
                control::send(socket, &VmEvent::Done { outcome: Ok(0) }, &[]).unwrap();
            }
            Command::Resize(size) => {
                let is_there = size.added_mib <= SPARE_MIB;
                let outcome =
                    is_there.then_some(4 << 30).ok_or_else(|| "the host has no memory".to_owned());
                control::send(socket, &VmEvent::Done { outcome }, &[]).unwrap();
            }
            Command::Stop => {
                let reason = ExitReason::Stopped;
                control::send(socket, &VmEvent::Exited { reason }, &[]).unwrap();
                break;
            }
            _ => {}
        }
    }
    for stream in streams {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The guest's localhost, where one gives back what he is sent.
fn listens_at_80(mut host: UnixStream) {
    let mut preamble = [0; ForwardPreamble::LEN];
    if host.read_exact(&mut preamble).is_ok() && ForwardPreamble::from_bytes(preamble).port == 80 {
        host.write_all(&[ports::FORWARDED]).unwrap();
        let _ = std::io::copy(&mut host.try_clone().unwrap(), &mut host);
    }
    // Whoever holds another descriptor of it is told as well.
    let _ = host.shutdown(std::net::Shutdown::Both);
}

/// Copies both ways, or back.
fn join(host: UnixStream, guest: Option<UnixStream>) {
    let copy = |mut from: UnixStream, mut to: UnixStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    };
    let dup = |stream: &UnixStream| stream.try_clone().unwrap();
    match guest {
        Some(guest) => {
            copy(dup(&host), dup(&guest));
            copy(guest, host);
        }
        None => drop(host),
    }
}

struct Fixture {
    sandbox: Sandbox,
    events: mpsc::UnboundedReceiver<SandboxEvent>,
    vmm: OwnedFd,
    _server: Server,
    guest: Arc<Guest>,
    dir: Scratch,
}

/// A directory that is removed with what is mounted in it: a sandbox that is dropped has not ended.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for target in targets.filter(|target| std::path::Path::new(target).starts_with(self.path()))
        {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A sandbox whose guest has reported in.
/// Stands for the VMM: a process that is there, whose network is the pod's.
fn vmm_pid() -> u32 {
    std::process::id()
}

async fn fixture() -> Fixture {
    fixture_of(None).await
}

/// The same, of a pod that was told of.
async fn fixture_of(told: Option<PodSpec>) -> Fixture {
    assert!(
        nix::unistd::Uid::effective().is_root(),
        "this test makes mounts and namespaces: run it as root"
    );
    let dir = Scratch(tempfile::tempdir().unwrap());
    let rpc = dir.path().join("rpc");
    let listener = UnixListener::bind(&rpc).unwrap();
    let guest = Arc::new(Guest::default());
    let server = Server::new().register_service(create_agent(guest.clone()));
    let mut server = server.add_listener(listener.try_into().unwrap());
    server.start().await.unwrap();

    let (control, theirs) = Control::pair().unwrap();
    let vmm = theirs.try_clone().unwrap();
    std::thread::spawn(move || play_vmm(&theirs, &rpc));
    let (vm, messages) = Vm::played(control);
    let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
    paths.create().unwrap();
    std::fs::create_dir(paths.layout()).unwrap();
    std::os::unix::fs::symlink(paths.layout(), paths.shared()).unwrap();
    // A program that stands for one that stands for a container.
    let text = "exec 2>&-\nexec sleep 1000";
    let stand_in = crate::testing::script(dir.path().join("stand-in"), text);
    let (sender, events) = mpsc::unbounded_channel();
    let settings = crate::settings::Settings::resolve(crate::config::Config::default()).unwrap();
    // Whatever the host has.
    let settings = crate::settings::Settings { max_vcpus: 4, max_memory_mib: 4096, ..settings };
    let sandbox = Sandbox::around(
        "s".into(),
        paths,
        (
            vm,
            [ProcessId { pid: vmm_pid().cast_signed(), start: 1 }; 2],
            capacity::Capacity::new(&settings, PodSize::default(), None),
            StandIns::new(stand_in, vmm_pid()),
        ),
        (told, TO_SNAPSHOT, Undo::new()),
        sender,
    );
    sandbox.clone().boot(messages, "host".into(), Duration::from_secs(20));
    Fixture { sandbox, events, vmm, _server: server, guest, dir }
}

fn process(program: &str) -> Vec<u8> {
    let user = serde_json::json!({"uid": 0, "gid": 0});
    serde_json::json!({"user": user, "cwd": "/", "args": [program]}).to_string().into_bytes()
}

fn new_exec(process_json: &[u8]) -> NewExec<'_> {
    NewExec { process_json, stdio: Stdio::default(), sub_cgroup: String::new() }
}

impl Fixture {
    fn container(&self, id: &str, command: &str) -> NewContainer {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": self.dir.path()},
            "linux": {"namespaces": [{"type": "mount"}]},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [command]},
        });
        // A file system that needs no rights to be shown: none.
        NewContainer {
            id: id.into(),
            spec: serde_json::from_value(spec).unwrap(),
            bundle: self.dir.path().into(),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
        }
    }

    async fn told(&mut self, count: usize) -> Vec<String> {
        let mut out = Vec::new();
        while out.len() < count {
            let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
            out.push(match event.expect("an event is missing").unwrap() {
                SandboxEvent::Created { id, pid } => format!("created {id} {pid}"),
                SandboxEvent::Started { id, pid } => format!("started {id} {pid}"),
                SandboxEvent::OutOfMemory { id } => format!("oom {id}"),
                SandboxEvent::Paused { id } => format!("paused {id}"),
                SandboxEvent::Resumed { id } => format!("resumed {id}"),
                SandboxEvent::ExecAdded { id, exec } => format!("added {id}/{exec}"),
                SandboxEvent::ExecStarted { id, exec, pid } => format!("started {id}/{exec} {pid}"),
                SandboxEvent::Exited { id, exec, exit, .. } => {
                    format!("exited {id}/{exec} {}", exit.status)
                }
                SandboxEvent::Deleted { id, exit, .. } => format!("deleted {id} {}", exit.status),
            });
        }
        out
    }
}

#[tokio::test]
async fn limits_that_the_machine_cannot_grow_to_are_not_kept() {
    let f = fixture().await;
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    let error = f.sandbox.update("c", br#"{"memory": {"limit": 1073741824}}"#).await.unwrap_err();
    assert!(error.to_string().contains("the host has no memory"), "{error}");
    let number = f.sandbox.table().number("c").unwrap();
    assert!(!f.sandbox.0.capacity.lock().await.limits(number));
}

#[tokio::test]
async fn limits_of_a_container_are_not_noted_after_its_end_and_not_lost_by_its_successor() {
    let f = fixture().await;
    for id in ["s", "c"] {
        f.sandbox.create(f.container(id, "sh")).await.unwrap();
    }
    let limits: LinuxResources = serde_json::from_str(r#"{"memory": {"limit": 1048576}}"#).unwrap();
    let set = async |number| {
        let agent = f.sandbox.agent().await.unwrap();
        f.sandbox.make_room(&agent, number, Part::Alone, &limits).await
    };
    let noted = async |number| f.sandbox.0.capacity.lock().await.limits(number);
    let number = || f.sandbox.table().number("c").unwrap();
    let first = number();
    set(first).await.unwrap();
    assert!(noted(first).await);
    let before = set(first).await.unwrap();
    f.sandbox.delete("c", "").await.unwrap();
    // Of an update that the delete has overtaken.
    f.sandbox.give_back(first, before).await;
    let late = set(first).await.unwrap_err();
    assert_eq!(late.code(), ttrpc::Code::NOT_FOUND);
    assert!(!noted(first).await);
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    set(number()).await.unwrap();
    f.sandbox.give_back(first, None).await;
    assert!(noted(number()).await);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn the_life_of_a_container_with_an_exec() {
    let mut f = fixture().await;
    let pid = f.sandbox.create(f.container("c", "sh")).await.unwrap();
    assert_eq!(pid, vmm_pid());
    f.sandbox.start("c").await.unwrap();
    f.sandbox.add_exec("c", "e", new_exec(&process("sh"))).unwrap();
    assert_eq!(f.sandbox.start_exec("c", "e").await.unwrap(), vmm_pid());
    f.sandbox.kill("c", "e", 9, false).await.unwrap();
    assert_eq!(f.sandbox.wait("c", "e").await.unwrap().status, 137);
    f.sandbox.delete("c", "e").await.unwrap();
    let early = f.sandbox.delete("c", "").await.unwrap_err();
    assert_eq!(early.code(), ttrpc::Code::FAILED_PRECONDITION);
    f.sandbox.kill("c", "", 15, true).await.unwrap();
    assert_eq!(f.sandbox.wait("c", "").await.unwrap().status, 143);
    let late = f.sandbox.kill("c", "", 15, true).await.unwrap_err();
    assert_eq!(late.code(), ttrpc::Code::NOT_FOUND);
    assert_eq!(f.sandbox.delete("c", "").await.unwrap().1.status, 143);
    let again = f.sandbox.delete("c", "").await.unwrap_err();
    assert_eq!(again.code(), ttrpc::Code::NOT_FOUND);
    f.sandbox.stop().await;
    let all = [
        "created c VMM",
        "started c VMM",
        "added c/e",
        "started c/e VMM",
        "exited c/e 137",
        "exited c/ 143",
        "deleted c 143",
    ];
    assert_eq!(f.told(7).await, all.map(|line| line.replace("VMM", &vmm_pid().to_string())));
    assert!(f.events.recv().await.is_none(), "nothing is told after the end");
}

#[tokio::test]
async fn a_refused_create_leaves_nothing_and_says_why() {
    let f = fixture().await;
    let error = f.sandbox.create(f.container("c", "missing")).await.unwrap_err();
    assert_eq!(error.to_string(), "OCI runtime create failed: exec: \"missing\": not found");
    assert!(!f.sandbox.0.paths.container("c").exists());
    assert!(f.sandbox.is_empty());
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    f.sandbox.stop().await;
}

/// Nor is it left in the guest, which did not know that nobody waited any more.
#[tokio::test]
async fn a_create_that_takes_too_long_is_none_on_either_side() {
    let f = fixture().await;
    let error = f.sandbox.create(f.container("c", "late")).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { call: "CreateContainer", .. }), "{error}");
    assert!(f.guest.late.lock().unwrap().is_empty());
    assert!(!f.sandbox.0.paths.container("c").exists());
    assert!(f.sandbox.is_empty());
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    f.sandbox.stop().await;
}

#[tokio::test]
async fn an_exec_that_takes_too_long_is_none_on_either_side() {
    let f = fixture().await;
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    f.sandbox.start("c").await.unwrap();
    f.sandbox.add_exec("c", "e", new_exec(&process("late"))).unwrap();
    let error = f.sandbox.start_exec("c", "e").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { call: "ExecProcess", .. }), "{error}");
    assert!(f.guest.late.lock().unwrap().is_empty());
    f.sandbox.delete("c", "e").await.unwrap();
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_pause_that_takes_too_long_is_none_on_either_side() {
    let f = fixture().await;
    for (id, stands_still) in [("c", true), ("late", false)] {
        f.sandbox.create(f.container(id, "sh")).await.unwrap();
        f.sandbox.start(id).await.unwrap();
        let paused = f.sandbox.set_paused(id, true).await;
        assert_eq!(paused.is_ok(), stands_still, "{paused:?}");
        assert_eq!(f.guest.paused.lock().unwrap().contains(id), stands_still);
        let phase = f.sandbox.state(id, "").unwrap().phase;
        assert_eq!(phase == Phase::Running, !stands_still, "{phase:?}");
    }
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_refused_exec_can_be_deleted() {
    let f = fixture().await;
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    f.sandbox.start("c").await.unwrap();
    f.sandbox.add_exec("c", "e", new_exec(&process("missing"))).unwrap();
    let error = f.sandbox.start_exec("c", "e").await.unwrap_err();
    assert_eq!(error.to_string(), "OCI runtime exec failed: not found");
    f.sandbox.delete("c", "e").await.unwrap();
    assert_eq!(f.sandbox.state("c", "e").unwrap_err().code(), ttrpc::Code::NOT_FOUND);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn processes_are_asked_for_in_parts() {
    let fixture = fixture().await;
    let agent = fixture.sandbox.agent().await.unwrap();
    let pids: Vec<_> = agent.processes("c").await.unwrap().iter().map(|p| p.pid).collect();
    assert_eq!(pids, [5, 7, 9]);
    let refused = agent.processes("endless").await.unwrap_err().to_string();
    assert!(refused.contains("without end"), "{refused}");
}

#[tokio::test]
async fn a_guest_that_tells_of_kills_without_end_is_not_heard_each_time() {
    let mut f = fixture().await;
    f.sandbox.create(f.container("flood", "sh")).await.unwrap();
    assert_eq!(f.told(2).await, [format!("created flood {}", vmm_pid()), "oom flood".into()]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(f.events.is_empty(), "{} events at once", f.events.len());
    assert_eq!(f.told(1).await, ["oom flood"]);
    f.sandbox.stop().await;
}

/// A file system whose server never answers; whoever looks at it hangs until this is dropped.
struct Dead {
    server: Option<std::fs::File>,
    directory: std::path::PathBuf,
}

impl Dead {
    fn mount(directory: std::path::PathBuf) -> Self {
        use nix::mount::{MsFlags, mount};
        use std::os::fd::AsRawFd;
        std::fs::create_dir(&directory).unwrap();
        let server = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let none = MsFlags::empty();
        mount(Some("dead"), &directory, Some("fuse"), none, Some(data.as_str())).unwrap();
        Self { server: Some(server), directory }
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        self.server = None;
        let _ = nix::mount::umount2(&self.directory, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_mount_source_that_hangs_holds_up_nobody_else() {
    let f = fixture().await;
    // What lies in the root itself is the guest's to look at.
    let elsewhere = tempfile::tempdir().unwrap();
    let dead = Dead::mount(elsewhere.path().join("dead"));
    let mut stuck = f.container("stuck", "sh");
    let mounts = serde_json::json!([{"destination": "/x", "source": dead.directory.join("x"),
        "type": "bind", "options": ["rbind"]}]);
    stuck.spec.set_mounts(Some(serde_json::from_value(mounts).unwrap()));
    let sandbox = f.sandbox.clone();
    let creating = tokio::spawn(async move { sandbox.create(stuck).await });
    let others = async {
        f.sandbox.create(f.container("c", "sh")).await.unwrap();
        f.sandbox.start("c").await.unwrap();
        f.sandbox.kill("c", "", 9, true).await.unwrap();
        f.sandbox.wait("c", "").await.unwrap();
        f.sandbox.delete("c", "").await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), others).await.unwrap();
    assert!(!creating.is_finished());
    drop(dead);
    assert!(creating.await.unwrap().unwrap_err().chain().contains("/dead/x"));
    f.sandbox.stop().await;
}

#[tokio::test]
async fn a_dead_machine_is_told_once_with_its_reason() {
    let mut f = fixture().await;
    f.sandbox.create(f.container("c", "sh")).await.unwrap();
    f.sandbox.start("c").await.unwrap();
    let reason = ExitReason::GuestPanic;
    control::send(&f.vmm, &VmEvent::Exited { reason }, &[]).unwrap();
    assert_eq!(f.sandbox.wait("c", "").await.unwrap().status, 137);
    let told = ["created c VMM", "started c VMM", "exited c/ 137"];
    assert_eq!(f.told(3).await, told.map(|line| line.replace("VMM", &vmm_pid().to_string())));
    let refused = f.sandbox.create(f.container("d", "sh")).await.unwrap_err();
    assert!(refused.to_string().contains("the guest kernel panicked"), "{refused}");
    let late = f.sandbox.update("c", b"{}").await.unwrap_err();
    assert_eq!(late.to_string(), "the sandbox is gone: the guest kernel panicked");
    f.sandbox.delete("c", "").await.unwrap();
    assert_eq!(f.told(1).await, ["deleted c 137"]);
    f.sandbox.stop().await;
}

#[tokio::test]
async fn what_a_failed_start_says_reaches_the_creator() {
    let (control, vmm) = Control::pair().unwrap();
    let (vm, messages) = Vm::played(control);
    let dir = tempfile::tempdir().unwrap();
    let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
    let (sender, _events) = mpsc::unbounded_channel();
    let sandbox = Sandbox::around(
        "s".into(),
        paths,
        (
            vm,
            [ProcessId { pid: 1, start: 1 }; 2],
            capacity::Capacity::default(),
            StandIns::new("/nowhere".into(), 1),
        ),
        (None, TO_SNAPSHOT, Undo::new()),
        sender,
    );
    sandbox.clone().boot(messages, String::new(), Duration::from_secs(20));
    let failed = VmEvent::Failed { error: "no /dev/kvm".into(), remedy: "load kvm".into() };
    control::send(&vmm, &failed, &[]).unwrap();
    let error = sandbox.agent().await.err().unwrap();
    assert_eq!(error.to_string(), "the virtual machine did not start: no /dev/kvm (load kvm)");
    sandbox.stop().await;
}

#[tokio::test]
async fn a_path_that_is_no_stream_is_named() {
    let f = fixture().await;
    let mut new = f.container("c", "sh");
    new.stdio.stdin = Endpoint::Path("/nowhere/stdin".into());
    f.sandbox.create(new).await.unwrap();
    let error = f.sandbox.start("c").await.unwrap_err();
    assert!(error.chain().contains("/nowhere/stdin"), "{}", error.chain());
    f.sandbox.stop().await;
}

#[tokio::test]
async fn an_end_that_has_begun_comes_though_nobody_waits_for_it() {
    let (control, _vmm) = Control::pair().unwrap();
    let (vm, _messages) = Vm::played(control);
    let dir = tempfile::tempdir().unwrap();
    let paths = SandboxPaths::new(dir.path(), "ns", "s").unwrap();
    let (undone, told) = std::sync::mpsc::channel();
    let mut undo = Undo::new();
    undo.push("tell", move || undone.send(()).map_err(std::io::Error::other));
    let (sender, _events) = mpsc::unbounded_channel();
    let stand_ins = StandIns::new("/nowhere".into(), 1);
    let helpers = [ProcessId { pid: 1, start: 1 }; 2];
    let parts = (vm, helpers, capacity::Capacity::default(), stand_ins);
    let sandbox = Sandbox::around("s".into(), paths, parts, (None, TO_SNAPSHOT, undo), sender);
    tokio::select! {
        biased;
        () = sandbox.stop() => panic!("it takes a moment"),
        () = std::future::ready(()) => {} // the caller's deadline
    }
    let undone = tokio::task::spawn_blocking(move || told.recv_timeout(Duration::from_secs(20)));
    undone.await.unwrap().unwrap();
    sandbox.stop().await;
}

#[tokio::test]
async fn the_last_owner_of_an_id_is_waited_for_while_this_thread_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let paths = SandboxPaths::new(dir.path(), "ns", "a").unwrap();
    Sandbox::vacate(&paths).await.unwrap();
    paths.create().unwrap();
    let mut owner = crate::testing::living();
    let last = ProcessId::of(owner.id().cast_signed()).unwrap();
    let (helpers, cgroup, uid, network) = (Vec::new(), None, None, None);
    SandboxState { owner: last, helpers, cgroup, uid, network }.write(&paths).unwrap();
    let mut vacated = std::pin::pin!(Sandbox::vacate(&paths));
    let turns = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        biased;
        made = &mut vacated => panic!("{made:?} while its owner lives"),
        () = turns => {}
    }
    drop(owner.stdin.take());
    vacated.await.unwrap();
    assert!(!paths.root().exists());
    owner.wait().unwrap();
}
