//! Calls to the guest's agent. Every call has a deadline; what comes back is checked.

use super::frames;
use crate::error::{Error, Result};
use crate::host::limits;
use crate::milestone;
use protocol::agent as api;
use protocol::agent_ttrpc::AgentClient;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

/// For calls that only look something up.
const SHORT: Duration = Duration::from_secs(10);

/// For calls that mount and start processes.
const LONG: Duration = Duration::from_secs(60);

/// For stopping processes: more than the agent itself takes for that (10 s), and for what they have written (5 s).
const PAUSE: Duration = Duration::from_secs(25);

/// For unmounting what outlives the container: everything that is in the guest's memory is written to the host's disk, however
/// slow that is.
const UNMOUNT: Duration = Duration::from_secs(15 * 60);

/// No deadline, in ttrpc's terms: for a wait that ends with the process or the guest.
const FOREVER: Duration = Duration::ZERO;

/// Most processes that a guest may tell of: the most that its kernel numbers without `pid_max`.
const MOST_PROCESSES: usize = 32_768;

/// Most lines of a file of statistics, and devices and sizes of pages, that a guest may tell of.
const MOST_FIGURES: usize = 1024;

/// Longest error text taken from the guest, bytes.
const MAX_MESSAGE: usize = 4096;

/// Numbers of a process's vsock streams; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamNumbers {
    /// Standard input.
    pub stdin: u64,
    /// Standard output, or the terminal's.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
    /// A terminal does not turn `\n` into `\r\n`.
    pub plain_newlines: bool,
}

impl From<StreamNumbers> for protobuf::MessageField<api::Stdio> {
    fn from(n: StreamNumbers) -> Self {
        let StreamNumbers { stdin, stdout, stderr, plain_newlines } = n;
        Some(api::Stdio { stdin, stdout, stderr, plain_newlines, ..Default::default() }).into()
    }
}

/// What a container has in its guest besides what the shared directory shows.
#[derive(Debug, Default)]
pub struct InGuest {
    /// Its disks.
    pub disks: Vec<api::Disk>,
    /// What is mounted for it.
    pub storages: Vec<api::Storage>,
    /// Its PID namespace.
    pub pids: PidsOf,
}

/// Whose PID namespace a container has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum PidsOf {
    /// What its specification says.
    #[default]
    Its,
    /// That of another.
    Container(String),
    /// That of the pod, which no container stands for.
    Pod,
}

/// A process of a container, as its guest tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the guest.
    pub pid: u32,
    /// Its exec id, if it is an exec's.
    pub exec: String,
    /// Its parent's pid in the guest.
    pub parent: u32,
    /// In the guest's own user namespace.
    pub uid: u32,
    /// Its arguments, or its name in brackets.
    pub command: String,
    /// Its name.
    pub name: String,
    /// As STAT of ps(1).
    pub state: String,
    /// As `pts/0`; empty: none.
    pub terminal: String,
    /// When it began: seconds since the epoch, the guest's clock.
    pub started_s: u64,
    /// How long ago, milliseconds.
    pub elapsed_ms: u64,
    /// Processor time, milliseconds.
    pub cpu_ms: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// That as a part of the guest's memory, per mille.
    pub memory_permille: u32,
    /// As nice(1).
    pub nice: i32,
    /// How many threads it has.
    pub threads: u32,
}

/// The wall clock, nanoseconds since the epoch.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

/// The agent of one guest.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
}

impl Agent {
    /// Speaks over a stream to the guest's port RPC.
    pub fn new(stream: UnixStream) -> Self {
        let client = ttrpc::asynchronous::Client::new(Socket::new(frames::bounded(stream)));
        Self { client: AgentClient::new(client) }
    }

    /// Gives the guest its identity.
    ///
    /// # Errors
    /// As every call: [`Error::Agent`], [`Error::Deadline`] or [`Error::Ended`].
    pub async fn setup_sandbox(&self, hostname: &str, shared_tag: &str) -> Result<()> {
        let request = api::SetupSandboxRequest {
            hostname: hostname.into(),
            clock_ns: now(),
            entropy: entropy()?,
            shared_tag: shared_tag.into(),
            rlimits_json: serde_json::to_vec(&limits::own())
                .map_err(|e| Error::InvalidArgument(format!("resource limits: {e}")))?,
            ..Default::default()
        };
        let call = self.client.setup_sandbox(deadline(LONG), &request);
        checked("SetupSandbox", LONG, call.await).map(drop)
    }

    /// Tells the guest the time; whether it wants to be told again.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn set_clock(&self) -> Result<bool> {
        let request = api::Clock { ns: now(), ..Default::default() };
        let call = self.client.set_clock(deadline(SHORT), &request);
        checked("SetClock", SHORT, call.await).map(|answer| answer.again)
    }

    /// Has the guest take what the machine has been given, or let go of what it shall give back; gives the
    /// vCPUs and the bytes of added memory that the guest has then.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn resize_sandbox(
        &self,
        vcpus: u32,
        added_at: u64,
        added_bytes: u64,
    ) -> Result<(u32, u64)> {
        let request = api::SandboxCapacity { vcpus, added_at, added_bytes, ..Default::default() };
        let call = self.client.resize_sandbox(deadline(LONG), &request).await;
        checked("ResizeSandbox", LONG, call).map(|answer| (answer.vcpus, answer.added_bytes))
    }

    /// Has the guest take network interfaces and set them up.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn setup_network(&self, interfaces: Vec<api::NetworkInterface>) -> Result<()> {
        let request = api::SetupNetworkRequest { interfaces, ..Default::default() };
        let call = self.client.setup_network(deadline(LONG), &request);
        checked("SetupNetwork", LONG, call.await).map(drop)
    }

    /// Has the guest listen where a container engine's resolver is asked, if it does not yet.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn serve_resolver(&self) -> Result<()> {
        let request = api::Empty::new();
        let call = self.client.serve_resolver(deadline(SHORT), &request);
        checked("ServeResolver", SHORT, call.await).map(drop)
    }

    /// Sets kernel parameters of the guest.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn set_sysctls(&self, sysctls: &BTreeMap<String, String>) -> Result<()> {
        let sysctls = sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let request = api::SetSysctlsRequest { sysctls, ..Default::default() };
        let call = self.client.set_sysctls(deadline(SHORT), &request);
        checked("SetSysctls", SHORT, call.await).map(drop)
    }

    /// Makes a container whose init process waits, with what the guest has for it; gives its guest pid.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn create_container(
        &self,
        id: &str,
        spec_json: Vec<u8>,
        streams: StreamNumbers,
        InGuest { disks, storages, pids }: InGuest,
    ) -> Result<u32> {
        let joins_pids_of_pod = pids == PidsOf::Pod;
        let joins_pids_of = if let PidsOf::Container(of) = pids { of } else { String::new() };
        let request = api::CreateContainerRequest {
            container_id: id.into(),
            spec_json,
            disks,
            storages,
            joins_pids_of,
            joins_pids_of_pod,
            stdio: streams.into(),
            ..Default::default()
        };
        let call = self.client.create_container(deadline(LONG), &request);
        checked("CreateContainer", LONG, call.await).map(|answer| answer.pid)
    }

    /// Lets a container's init process go.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let call = self.client.start_container(deadline(LONG), &container(id)).await;
        checked("StartContainer", LONG, call).map(drop)
    }

    /// Starts one more process; gives its guest pid.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        (process_json, sub_cgroup): (Vec<u8>, String),
        streams: StreamNumbers,
    ) -> Result<u32> {
        let request = api::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process_json,
            sub_cgroup,
            stdio: streams.into(),
            ..Default::default()
        };
        let call = self.client.exec_process(deadline(LONG), &request).await;
        checked("ExecProcess", LONG, call).map(|answer| answer.pid)
    }

    /// Sends a signal to a process, or to all of a container.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn signal(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = api::SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            signal,
            all,
            ..Default::default()
        };
        let call = self.client.signal_process(deadline(SHORT), &request).await;
        checked("SignalProcess", SHORT, call).map(drop)
    }

    /// Waits for a process to end, however long; gives its exit status, 0 to 255, and for an init how many
    /// processes of its container were killed for lack of memory.
    ///
    /// # Errors
    /// [`Error::Agent`], or [`Error::Ended`] when the guest is gone.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<(u32, u64)> {
        let call = self.client.wait_process(deadline(FOREVER), &process(id, exec)).await;
        let answer = checked("WaitProcess", FOREVER, call)?;
        Ok((answer.exit_status.min(255), answer.oom_kills))
    }

    /// Waits until more than `seen` processes of a container were killed for lack of memory, or its init has
    /// ended; gives how many.
    ///
    /// # Errors
    /// As [`Agent::wait`].
    pub async fn wait_out_of_memory(&self, id: &str, seen: u64) -> Result<u64> {
        let request =
            api::WaitOutOfMemoryRequest { container_id: id.into(), seen, ..Default::default() };
        let call = self.client.wait_out_of_memory(deadline(FOREVER), &request).await;
        checked("WaitOutOfMemory", FOREVER, call).map(|answer| answer.kills)
    }

    /// Waits until the guest's processes have waited for processors; gives how many could run then, as the guest says.
    ///
    /// # Errors
    /// As [`Agent::wait`]; or the guest keeps no account of that.
    pub async fn wait_busy(&self) -> Result<u32> {
        let call = self.client.wait_busy(deadline(FOREVER), &api::Empty::new()).await;
        checked("WaitBusy", FOREVER, call).map(|answer| answer.runnable)
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>> {
        let mut all = Vec::new();
        let end = Instant::now() + LONG;
        loop {
            let after = all.last().map_or(0, |process: &Process| process.pid);
            let (part, more) = self.processes_after(id, after).await?;
            all.extend(part);
            at_most(MOST_PROCESSES, "processes", all.len())?;
            if !more {
                return Ok(all);
            }
            if Instant::now() >= end {
                return Err(Error::Deadline { call: "ListProcesses", seconds: LONG.as_secs() });
            }
        }
    }

    /// Some of them, and whether there are more.
    async fn processes_after(&self, id: &str, after: u32) -> Result<(Vec<Process>, bool)> {
        let container_id = id.into();
        let request = api::ListProcessesRequest { container_id, after, ..Default::default() };
        let call = self.client.list_processes(deadline(SHORT), &request).await;
        let answer = checked("ListProcesses", SHORT, call)?;
        if answer.more && answer.processes.last().is_none_or(|last| last.pid <= after) {
            let what = "the guest tells of processes without end".to_owned();
            return Err(Error::FailedPrecondition(what));
        }
        let process = |p: api::ProcessInfo| Process {
            pid: p.pid,
            exec: p.exec_id,
            parent: p.parent,
            uid: p.uid,
            command: bounded(&p.command),
            name: bounded(&p.name),
            state: bounded(&p.state),
            terminal: bounded(&p.terminal),
            started_s: p.started_s,
            elapsed_ms: p.elapsed_ms,
            cpu_ms: p.cpu_ms,
            virtual_bytes: p.virtual_bytes,
            resident_bytes: p.resident_bytes,
            memory_permille: p.memory_permille,
            nice: p.nice,
            threads: p.threads,
        };
        Ok((answer.processes.into_iter().map(process).collect(), answer.more))
    }

    /// Stops every process of a running container.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn pause(&self, id: &str) -> Result<()> {
        let call = self.client.pause_container(deadline(PAUSE), &container(id)).await;
        checked("PauseContainer", PAUSE, call).map(drop)
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn resume(&self, id: &str) -> Result<()> {
        let call = self.client.resume_container(deadline(PAUSE), &container(id)).await;
        checked("ResumeContainer", PAUSE, call).map(drop)
    }

    /// Sets those of a container's limits that are named.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn update(&self, id: &str, resources_json: Vec<u8>) -> Result<()> {
        let request = api::UpdateContainerRequest {
            container_id: id.into(),
            resources_json,
            ..Default::default()
        };
        let call = self.client.update_container(deadline(SHORT), &request).await;
        checked("UpdateContainer", SHORT, call).map(drop)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn stats(&self, id: &str) -> Result<api::ContainerStatsResponse> {
        let call = self.client.container_stats(deadline(SHORT), &container(id)).await;
        checked("ContainerStats", SHORT, call).and_then(few)
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let request = api::ResizeTerminalRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            width,
            height,
            ..Default::default()
        };
        let call = self.client.resize_terminal(deadline(SHORT), &request).await;
        checked("ResizeTerminal", SHORT, call).map(drop)
    }

    /// Forgets an exec that has ended.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn delete_exec(&self, id: &str, exec: &str) -> Result<()> {
        let call = self.client.delete_process(deadline(SHORT), &process(id, exec)).await;
        checked("DeleteProcess", SHORT, call).map(drop)
    }

    /// Removes a container whose init has ended, and with it the file systems of its own, one of which may be on a disk that
    /// `lasts`.
    ///
    /// # Errors
    /// See [`Agent::setup_sandbox`].
    pub async fn delete_container(&self, id: &str, lasts: bool) -> Result<()> {
        let patience = if lasts { UNMOUNT } else { SHORT };
        let call = self.client.delete_container(deadline(patience), &container(id)).await;
        checked("DeleteContainer", patience, call).map(drop)
    }

    /// Syncs and powers off; the answer may be lost with the guest.
    ///
    /// # Errors
    /// [`Error::Ended`] is to be expected.
    pub async fn shutdown(&self, patience: Duration) -> Result<()> {
        let call = self.client.shutdown(deadline(patience), &api::Empty::new()).await;
        checked("Shutdown", patience, call).map(drop)
    }
}

fn deadline(duration: Duration) -> context::Context {
    context::with_duration(duration)
}

fn container(id: &str) -> api::ContainerRef {
    api::ContainerRef { container_id: id.into(), ..Default::default() }
}

fn process(id: &str, exec: &str) -> api::ProcessRef {
    api::ProcessRef { container_id: id.into(), exec_id: exec.into(), ..Default::default() }
}

/// 32 bytes for the guest's pool.
fn entropy() -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; 32];
    // SAFETY: the pointer and length are those of `bytes`.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize {
        Ok(bytes)
    } else {
        Err(Error::system("getrandom")(std::io::Error::last_os_error()))
    }
}

/// Turns what ttrpc says into this library's error.
fn checked<T>(call: &'static str, limit: Duration, answer: ttrpc::Result<T>) -> Result<T> {
    answer.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
            tracing::warn!("{call} timed out at mono_ns={}", milestone::now_ns());
            Error::Deadline { call, seconds: limit.as_secs() }
        }
        ttrpc::Error::RpcStatus(status) => {
            Error::Agent { code: status.code(), message: bounded(&status.message) }
        }
        other => Error::Ended(format!("{call}: {}", bounded(&other.to_string()))),
    })
}

/// Statistics of a size that a kernel could have told: every figure is copied several times on its way.
fn few(stats: api::ContainerStatsResponse) -> Result<api::ContainerStatsResponse> {
    let files = [&stats.cpu, &stats.memory, &stats.memory_events, &stats.single];
    let devices = stats.io.iter().map(|device| device.values.len());
    let others = [stats.io.len(), stats.pressure.len(), stats.huge_pages.len()];
    let most = files.map(HashMap::len).into_iter().chain(devices).chain(others).max();
    at_most(MOST_FIGURES, "figures of one kind", most.unwrap_or(0))?;
    Ok(stats)
}

fn at_most(most: usize, what: &str, count: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!("the guest tells of {count} {what}")))
}

/// Text of the guest's, short and without control characters.
fn bounded(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut out = String::new();
    for c in text.chars().map(clean) {
        if out.len() + c.len_utf8() > MAX_MESSAGE {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_kernel_would_tell_is_refused() {
        assert!(at_most(MOST_PROCESSES, "processes", MOST_PROCESSES).is_ok());
        assert!(at_most(MOST_PROCESSES, "processes", MOST_PROCESSES + 1).is_err());
        let io = vec![api::IoUse::default(); MOST_FIGURES];
        let mut stats = api::ContainerStatsResponse { io, ..Default::default() };
        assert!(few(stats.clone()).is_ok());
        stats.io[0].values = (0..=MOST_FIGURES).map(|n| (n.to_string(), 1)).collect();
        assert!(few(stats.clone()).is_err());
        stats.io = vec![api::IoUse::default(); MOST_FIGURES + 1];
        assert!(few(stats).is_err());
    }

    #[test]
    fn error_text_of_the_guest_is_short_and_printable() {
        let text = format!("\x1b[2J{}\n", "é".repeat(MAX_MESSAGE));
        let out = bounded(&text);
        assert!(out.len() <= MAX_MESSAGE && !out.contains('\x1b'));
    }
}
