//! An agent as PID 1 of namespaces on this host, spoken to over unix sockets instead of vsock.
//!
//! The containers' root is an overlay over the host's own root, handed in as descriptor 9: the agent's
//! root hides every path of the host. Limits are not tested here: the host's cgroups may be version 1.

// Each test file uses a part of this.
#![allow(dead_code, missing_docs)]

use nix::unistd::Pid;
use protocol::agent::{
    ContainerRef, CreateContainerRequest, ExecProcessRequest, ProcessExit, ProcessRef,
    SignalProcessRequest, Stdio, Storage,
};
use protocol::agent_ttrpc::AgentClient;
use protocol::ports::{self, StreamPreamble};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Becomes PID 1: makes the containers' root, then the agent.
const START: &str = r#"
mount --make-rprivate / && mount -t tmpfs tmpfs "$DIR" && cd "$DIR" && mkdir upper work root &&
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root &&
exec 9<root && exec "$AGENT"
"#;

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// # Panics
/// Where the caller may not make namespaces.
pub fn start() -> Agent {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes mounts and namespaces: run it as root"
    );
    Agent::start()
}

/// As the kernel starts PID 1; who started this test, as a shell in the background, may ignore some signals.
#[allow(clippy::unnecessary_wraps)] // The form that `pre_exec` takes.
fn ignore_nothing() -> std::io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: installs no handler; for SIGKILL and SIGSTOP it fails and changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

/// A running agent; killed, with all its containers, when dropped.
pub struct Agent {
    pub client: AgentClient,
    /// Begins every container id, so that tests do not meet in the host's cgroups.
    pub prefix: String,
    /// What the agent has logged.
    pub log: Arc<Mutex<Vec<String>>>,
    child: Child,
    directory: std::path::PathBuf,
}

impl Agent {
    fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("agent-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(&prefix);
        std::fs::create_dir(&directory).unwrap();
        let listener = UnixListener::bind_addr(&address(&prefix, ports::LOG)).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--mount", "--uts", "--fork", "--kill-child", "sh", "-c", START])
            .env("DIR", &directory)
            .env("AGENT", env!("CARGO_BIN_EXE_kata-like-agent"))
            .env("KATA_LIKE_AGENT_SOCKETS", &prefix)
            .stdin(ProcessStdio::null());
        // SAFETY: the closure only makes async-signal-safe calls.
        unsafe { command.pre_exec(ignore_nothing) };
        let child = command.spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let rpc = format!("unix://@{prefix}-{}", ports::RPC);
        let client = futures_now(ttrpc::asynchronous::Client::connect(&rpc)).unwrap();
        Self { client: AgentClient::new(client), prefix, log, child, directory }
    }

    /// Its process that forks: the first child of the agent, which is the only child of `unshare`.
    pub fn zygote(&self) -> Pid {
        let first_child = |pid: i32| -> i32 {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(path).unwrap();
            children.split_whitespace().next().unwrap().parse().unwrap()
        };
        Pid::from_raw(first_child(first_child(self.child.id() as i32)))
    }

    /// The id of a container of this agent.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Creates a container from a process object, without starting it.
    pub async fn create(&self, name: &str, process: Value) -> ttrpc::Result<(String, Streams)> {
        self.create_with(name, process, json!({}), Streams::new(&self.prefix)).await
    }

    /// As [`Agent::create`], with parts of `linux`, and streams.
    pub async fn create_with(
        &self,
        name: &str,
        process: Value,
        linux: Value,
        streams: Streams,
    ) -> ttrpc::Result<(String, Streams)> {
        self.create_whole(name, json!({ "process": process, "linux": linux }), streams).await
    }

    /// As [`Agent::create_with`], with any members of a specification.
    pub async fn create_whole(
        &self,
        name: &str,
        parts: Value,
        streams: Streams,
    ) -> ttrpc::Result<(String, Streams)> {
        let patience = ttrpc::context::Context::default();
        self.create_within(patience, name, parts, streams).await
    }

    /// As [`Agent::create_whole`], by a caller with that patience.
    pub async fn create_within(
        &self,
        context: ttrpc::context::Context,
        name: &str,
        parts: Value,
        streams: Streams,
    ) -> ttrpc::Result<(String, Streams)> {
        let request = self.create_request(name, parts, &streams);
        self.client.create_container(context, &request).await?;
        Ok((request.container_id, streams))
    }

    /// What asks for a container.
    pub fn create_request(
        &self,
        name: &str,
        parts: Value,
        streams: &Streams,
    ) -> CreateContainerRequest {
        let id = self.id(name);
        let root = format!("/run/kata-like/{id}-root");
        CreateContainerRequest {
            container_id: id,
            spec_json: spec(&root, parts).to_string().into_bytes(),
            storages: vec![Storage {
                source: "/proc/self/fd/9".to_owned(),
                options: vec!["bind".to_owned()],
                mount_point: root,
                ..Storage::default()
            }],
            stdio: Some(streams.stdio.clone()).into(),
            ..CreateContainerRequest::default()
        }
    }

    pub async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        self.client.start_container(context(), &container(id)).await.map(drop)
    }

    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: Value,
        streams: &Streams,
    ) -> ttrpc::Result<u32> {
        self.exec_within(context(), id, exec_id, process, streams).await
    }

    /// As [`Agent::exec`], by a caller with that patience.
    pub async fn exec_within(
        &self,
        context: ttrpc::context::Context,
        id: &str,
        exec_id: &str,
        process: Value,
        streams: &Streams,
    ) -> ttrpc::Result<u32> {
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process_json: process.to_string().into_bytes(),
            stdio: Some(streams.stdio.clone()).into(),
            ..ExecProcessRequest::default()
        };
        Ok(self.client.exec_process(context, &request).await?.pid)
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> ProcessExit {
        self.client.wait_process(context(), &process_ref(id, exec_id)).await.unwrap()
    }

    pub async fn signal(&self, id: &str, exec_id: &str, signal: i32) -> ttrpc::Result<()> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: signal as u32,
            ..SignalProcessRequest::default()
        };
        self.client.signal_process(context(), &request).await.map(drop)
    }

    pub async fn delete(&self, id: &str) -> ttrpc::Result<()> {
        self.client.delete_container(context(), &container(id)).await.map(drop)
    }

    /// Runs a shell script as a container, to its end; its status and output.
    pub async fn run(&self, name: &str, script: &str) -> (u32, String) {
        let streams = Streams::new(&self.prefix);
        let output = streams.read_stdout();
        let (id, _streams) =
            self.create_with(name, shell(script), json!({}), streams).await.unwrap();
        self.start_container(&id).await.unwrap();
        let exit = self.wait(&id, "").await;
        let text = String::from_utf8(output.join().unwrap()).unwrap();
        self.delete(&id).await.unwrap();
        (exit.exit_status, text)
    }

    /// Workers end a moment after they have answered, and closed streams linger.
    pub async fn assert_nothing_left(&self) {
        for _ in 0..1200 {
            if self.leftovers().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    /// The files and directories that the guest keeps for containers.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let root = format!("/proc/{}/root/run/kata-like", children.unwrap().trim());
        let mut found = vec![std::path::PathBuf::from(root)];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            // What is mounted there is the containers' own.
            if directory.to_string_lossy().ends_with("-root") || directory.is_symlink() {
                continue;
            }
            let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path()));
        }
        found
    }

    /// Processes, mounts, cgroups and directories that are left of containers.
    fn leftovers(&self) -> Vec<String> {
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let pid1 = children.unwrap().trim().to_owned();
        let root = format!("/proc/{pid1}/root");
        let mut found = Vec::new();
        for directory in ["containers", "bundles"] {
            for entry in std::fs::read_dir(format!("{root}/run/kata-like/{directory}")).unwrap() {
                found.push(entry.unwrap().path().display().to_string());
            }
        }
        let mounts = std::fs::read_to_string(format!("/proc/{pid1}/mounts")).unwrap();
        found.extend(mounts.lines().filter(|m| m.contains("-root ")).map(String::from));
        let cgroups = format!("{root}/sys/fs/cgroup/containers");
        for entry in std::fs::read_dir(cgroups).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{}-", self.prefix)) {
                found.push(entry.path().display().to_string());
            }
        }
        let children = format!("{root}/proc/1/task/1/children");
        let children = std::fs::read_to_string(children).unwrap();
        // The zygote stays.
        found.extend(children.split_whitespace().skip(1).map(|pid| format!("process {pid}")));
        let descriptors = std::fs::read_dir(format!("/proc/{pid1}/fd")).unwrap().count();
        if descriptors > 32 {
            found.push(format!("{descriptors} descriptors"));
        }
        found
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // unshare kills PID 1 with itself, and the kernel the rest of the namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir(&self.directory);
        if std::thread::panicking() {
            eprintln!(
                "{}",
                self.log
                    .lock()
                    .unwrap()
                    .iter()
                    .filter(|l| l.starts_with("agent:"))
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n")
            );
        }
    }
}

/// How long a stream may say nothing before its test fails.
const SILENCE: Duration = Duration::from_secs(120);

/// The streams of one process, by number.
pub struct Streams {
    prefix: String,
    pub stdio: Stdio,
}

impl Streams {
    /// stdin, stdout and stderr, of new numbers.
    pub fn new(prefix: &str) -> Self {
        let next = || NUMBER.fetch_add(1, Ordering::Relaxed);
        let stdio = Stdio { stdin: next(), stdout: next(), stderr: next(), ..Stdio::default() };
        Self::of(prefix, stdio)
    }

    /// Of these numbers.
    pub fn of(prefix: &str, stdio: Stdio) -> Self {
        Self { prefix: prefix.to_owned(), stdio }
    }

    /// stdin and stdout only.
    pub fn for_terminal(prefix: &str) -> Self {
        let mut streams = Self::new(prefix);
        streams.stdio.stderr = 0;
        streams
    }

    pub fn connect(&self, number: u64) -> UnixStream {
        let mut stream = UnixStream::connect_addr(&address(&self.prefix, ports::STDIO)).unwrap();
        // Who reads blocks the test's one thread, on which no deadline can pass meanwhile.
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream.write_all(&StreamPreamble(number).to_bytes()).unwrap();
        stream
    }

    pub fn read_stdout(&self) -> JoinHandle<Vec<u8>> {
        read_all(self.connect(self.stdio.stdout))
    }

    pub fn read_stderr(&self) -> JoinHandle<Vec<u8>> {
        read_all(self.connect(self.stdio.stderr))
    }

    pub fn stdin(&self) -> UnixStream {
        self.connect(self.stdio.stdin)
    }
}

fn read_all(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

pub fn context() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(60_000_000_000)
}

pub fn container(id: &str) -> ContainerRef {
    ContainerRef { container_id: id.to_owned(), ..ContainerRef::default() }
}

pub fn process_ref(id: &str, exec_id: &str) -> ProcessRef {
    ProcessRef { container_id: id.to_owned(), exec_id: exec_id.to_owned(), ..ProcessRef::default() }
}

/// The code of a refused call.
pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

pub fn shell(script: &str) -> Value {
    command(&["sh", "-c", script])
}

/// A process as ctr has it: root with Docker's capabilities and no_new_privs.
pub fn command(args: &[&str]) -> Value {
    let capabilities: Vec<String> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"))
    .into();
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": { "bounding": capabilities, "effective": capabilities,
                          "permitted": capabilities },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
    })
}

fn spec(root: &str, mut parts: Value) -> Value {
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|n| json!({ "type": n }));
    let mut all = json!({
        "cgroupsPath": "/host/path",
        "namespaces": namespaces,
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
    });
    let linux = parts["linux"].take();
    all.as_object_mut().unwrap().extend(linux.as_object().cloned().unwrap_or_default());
    parts["linux"] = all;
    let mut whole = json!({
        "ociVersion": "1.1.0",
        "root": { "path": root },
        "mounts": [
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        ],
    });
    whole.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    whole
}

fn address(prefix: &str, port: u32) -> SocketAddr {
    SocketAddr::from_abstract_name(format!("{prefix}-{port}")).unwrap()
}

/// Polls a future that does not wait.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the future waits"),
    }
}
