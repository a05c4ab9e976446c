//! The long-lived process of one sandbox: serves the task API, in both of its versions, on the inherited socket.

use crate::connections;
use crate::flags::Flags;
use crate::given_up;
use crate::publisher::Publisher;
use crate::sandbox_api;
use crate::socket::Socket;
use crate::task::events::{self, Containers};
use crate::task::service::TaskService;
use crate::task::slot::{Owner, Slot};
use anyhow::Context;
use containerd_shim_protos::shim_async::create_task;
use sandbox::{limits, milestone, storage};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use ttrpc::asynchronous::{Server, Service};

/// The action by which `start` starts this process.
pub const ACTION: &str = "serve";

/// What `start` says on standard input when it has told containerd the address.
pub const ANSWERED: &[u8] = b"1";

/// Where the listening socket is inherited.
pub const LISTENER_FD: RawFd = 3;

/// The generated service's name, and what it was called before containerd 2.0; they differ in nothing else.
const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";

/// How long a shim lives without a container, unless the sandbox API says that it is a pod's. containerd calls Create at
/// once and Shutdown after the last Delete, unless it is killed between them.
const ABANDONED: Duration = Duration::from_secs(120);

/// How long containerd's sandbox API may take from CreateSandbox to StartSandbox: containerd 2 fetches the image of the
/// pause container between them, and if it can't, or is asked no longer, forgets the sandbox without a word.
const UNSTARTED: Duration = Duration::from_secs(900);

/// How long containerd may stay away before its first Create: it connects when it has the answer of `start`, stays
/// connected until then, and may be slow meanwhile.
const UNCALLED: Duration = Duration::from_secs(20);

/// How long containerd may take to hear the answer to ShutdownSandbox, and to go: its client takes an answer with an end
/// right behind it for the end alone, now and then, and that for an error.
const HEARD: Duration = Duration::from_secs(1);

/// How long events may take to get out at the end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// Runs the server until its sandbox is shut down.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    crate::log::to_containerd(flags.debug)?;
    let socket = Socket::at(Path::new(&flags.socket));
    milestone::mark("shim-server", &flags.id);
    let served = storage::private_mounts().map_err(anyhow::Error::from).and_then(|()| {
        yield_to_containerd();
        limits::raise_open_files();
        // One thread: the VMM lives as long as the thread that started it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = runtime.block_on(serve(flags, &socket));
        // A thread may be in a system call on a file that hangs.
        runtime.shutdown_background();
        served
    });
    socket.withdraw();
    if let Err(error) = &served {
        tracing::error!("{error:#}");
    }
    milestone::mark("shim-end", &flags.id);
    served
}

/// When memory is short, the shim goes before containerd, from which it inherits its protection.
fn yield_to_containerd() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Ok(text) = std::fs::read_to_string(FILE) else { return };
    if let Ok(score) = text.trim().parse::<i32>()
        && let Err(error) = std::fs::write(FILE, (score + 1).min(1000).to_string())
    {
        tracing::warn!("{FILE}: {error}");
    }
}

async fn serve(flags: &Flags, socket: &Socket) -> anyhow::Result<()> {
    let (notices, queue) = mpsc::unbounded_channel();
    let publisher =
        Publisher { address: flags.ttrpc_address.clone(), namespace: flags.namespace.clone() };
    let publishing = tokio::spawn(publisher.run(queue));
    let (sandbox_events, sandbox_told) = mpsc::unbounded_channel();
    let containers = Containers::default();
    let noted = flags.ttrpc_address.is_empty();
    tokio::spawn(events::forward(sandbox_told, containers.clone(), notices, noted));

    let config = (!flags.config.is_empty()).then(|| Path::new(&flags.config).to_path_buf());
    let spec = (!flags.sandbox.is_empty()).then(|| serde_json::from_str(&flags.sandbox));
    let spec = spec.transpose().context("parse -sandbox")?;
    let is_told = spec.is_none();
    let owner = Owner { namespace: flags.namespace.clone(), id: flags.id.clone(), spec };
    let slot = Slot::launch(owner, config, sandbox_events);
    let finished = Arc::new(Notify::new());
    let service = Arc::new(TaskService::new(slot, containers, socket.clone(), finished.clone()));

    // SAFETY: `start` left the listening socket at this number for this process alone.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER_FD) };
    listener.set_nonblocking(true)?;
    let (listener, mut connected) = connections::counted(listener.try_into()?);
    let server = Server::new().register_service(services(&service));
    let server = server.register_service(sandbox_api::service(service.clone()));
    // Where `start` was called: the bundle of what has the sandbox's id.
    let bundle = std::env::current_dir().context("find the bundle")?;
    let server = server.register_service(given_up::service(service.clone(), bundle));
    let mut server = server.add_listener(listener);
    server.start().await?;
    milestone::mark("shim-serving", &flags.id);

    let start = Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)
        .context("listen to the start")?;
    tokio::select! {
        end = wait_for_the_end(&finished) => end?,
        () = unanswered(start) => {
            tracing::warn!("the start was ended before containerd had its answer: ending");
        }
        () = service.uncalled(UNCALLED, connected.clone()) => {
            tracing::warn!("containerd stayed away for {} s: ending", UNCALLED.as_secs());
        }
        () = service.abandoned(ABANDONED, UNSTARTED) => {
            tracing::warn!("nobody asked for a container, or for a start of the sandbox, for minutes: ending");
        }
    }
    service.stop().await;
    if is_told {
        let _ = tokio::time::timeout(HEARD, connected.wait_for(|count| *count == 0)).await;
    }
    server.shutdown().await?;
    drop(server);
    if tokio::time::timeout(FLUSH_PATIENCE, publishing).await.is_err() {
        tracing::error!("containerd is away: events at the end are lost");
    }
    Ok(())
}

/// `start` has ended without a word: nobody knows of this server.
async fn unanswered(mut start: Receiver) {
    if let Ok(1..) = start.read(&mut [0; ANSWERED.len()]).await {
        std::future::pending::<()>().await;
    }
}

/// The shutdown call, or a signal.
async fn wait_for_the_end(finished: &Notify) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    tokio::select! {
        () = finished.notified() => {}
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    Ok(())
}

/// The task service under both of its names.
fn services(service: &Arc<TaskService>) -> HashMap<String, Service> {
    let mut services = create_task(service.clone());
    let again = create_task(service.clone()).remove(TASK_V3);
    services.extend(again.map(|service| (TASK_V2.to_owned(), service)));
    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::ShutdownRequest;
    use protobuf::Message;
    use sandbox::SandboxSpec;
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::watch;
    use ttrpc::asynchronous::Client;
    use ttrpc::{Code, Request};

    fn owner() -> Owner {
        Owner { namespace: "ns".into(), id: "s".into(), spec: Some(SandboxSpec::default()) }
    }

    #[tokio::test]
    async fn a_shim_without_containers_is_abandoned() {
        let service = failed_service();
        let (patience, end) = (Duration::from_millis(40), Duration::from_secs(10));
        tokio::time::timeout(end, service.abandoned(patience, end)).await.unwrap();
        let (_count, nobody) = watch::channel(0);
        tokio::time::timeout(end, service.uncalled(patience, nobody)).await.unwrap();
    }

    #[tokio::test]
    async fn a_pod_that_nobody_starts_is_abandoned_later_and_one_that_is_started_never() {
        let service = failed_service();
        let (short, long) = (Duration::from_millis(40), Duration::from_secs(4));
        service.told();
        assert!(tokio::time::timeout(short * 4, service.abandoned(short, long)).await.is_err());
        tokio::time::timeout(long * 5, service.abandoned(short, long)).await.unwrap();
        service.hold();
        assert!(tokio::time::timeout(short * 8, service.abandoned(short, short)).await.is_err());
    }

    #[tokio::test]
    async fn a_pod_that_containerd_knows_nothing_of_ends_with_the_task_of_its_id_and_no_other() {
        let (_server, client, finished, service) = serve_failed().await;
        service.hold();
        for (id, ends) in [("c1", false), ("s", true)] {
            let request = ShutdownRequest { id: id.into(), ..Default::default() };
            let payload = request.write_to_bytes().unwrap();
            assert_eq!(call(&client, TASK_V3, "Shutdown", payload).await.0, Code::OK);
            let patience = Duration::from_millis(if ends { 20_000 } else { 100 });
            let told = tokio::time::timeout(patience, finished.notified()).await;
            assert_eq!(told.is_ok(), ends, "{id}");
        }
    }

    #[tokio::test]
    async fn one_that_is_connected_may_be_slow_and_one_that_goes_away_has_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (listener, connected) = connections::counted(listener.try_into().unwrap());
        let service = failed_service();
        let server = Server::new().register_service(services(&service));
        let mut server = server.add_listener(listener);
        server.start().await.unwrap();
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        assert_eq!(call(&client, TASK_V3, "Connect", Vec::new()).await.0, Code::OK);
        let (patience, end) = (Duration::from_millis(50), Duration::from_secs(10));
        let given_up = || service.uncalled(patience, connected.clone());
        assert!(tokio::time::timeout(patience * 6, given_up()).await.is_err());
        drop(client);
        tokio::time::timeout(end, given_up()).await.unwrap();
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        assert_eq!(call(&client, TASK_V3, "Create", Vec::new()).await.0, Code::UNKNOWN);
        drop(client);
        assert!(tokio::time::timeout(patience * 6, given_up()).await.is_err(), "it had called");
    }

    fn failed_service() -> Arc<TaskService> {
        let (events, _told) = mpsc::unbounded_channel();
        let slot = Slot::launch(owner(), Some("/nowhere/config.toml".into()), events);
        let (containers, socket) = (Containers::default(), Socket::at(Path::new("/nowhere/s")));
        Arc::new(TaskService::new(slot, containers, socket, Arc::default()))
    }

    /// A server whose sandbox could not be launched, and a client of it.
    async fn serve_failed() -> (Server, Client, Arc<Notify>, Arc<TaskService>) {
        let (events, _told) = mpsc::unbounded_channel();
        let slot = Slot::launch(owner(), Some("/nowhere/config.toml".into()), events);
        let finished = Arc::new(Notify::new());
        let service = Arc::new(TaskService::new(
            slot,
            Containers::default(),
            Socket::at(Path::new("/nowhere/s")),
            finished.clone(),
        ));
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server::new().register_service(services(&service));
        let mut server = server.add_listener(listener.try_into().unwrap());
        server.start().await.unwrap();
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        (server, client, finished, service)
    }

    async fn call(
        client: &Client,
        service: &str,
        method: &str,
        payload: Vec<u8>,
    ) -> (Code, String) {
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            ..Default::default()
        };
        match client.request(request).await {
            Ok(_) => (Code::OK, String::new()),
            Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
            Err(other) => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn both_versions_of_the_task_api_are_served_on_one_socket() {
        let (_server, client, ..) = serve_failed().await;
        for service in [TASK_V2, TASK_V3] {
            let (code, text) = call(&client, service, "Create", Vec::new()).await;
            assert_eq!(code, Code::UNKNOWN);
            assert!(text.contains("/nowhere/config.toml"), "{text}");
            assert_eq!(call(&client, service, "Connect", Vec::new()).await.0, Code::OK);
        }
    }

    #[tokio::test]
    async fn a_start_that_ends_without_a_word_is_noticed() {
        let patience = Duration::from_millis(50);
        let (mut start, server) = tokio::net::unix::pipe::pipe().unwrap();
        start.write_all(ANSWERED).await.unwrap();
        drop(start);
        assert!(tokio::time::timeout(patience, unanswered(server)).await.is_err());
        let (start, server) = tokio::net::unix::pipe::pipe().unwrap();
        let noticed = tokio::spawn(unanswered(server));
        drop(start);
        noticed.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_there_is_unimplemented_by_name() {
        let (_server, client, ..) = serve_failed().await;
        let (code, text) = call(&client, TASK_V3, "Checkpoint", Vec::new()).await;
        assert_eq!(code, Code::UNIMPLEMENTED);
        assert!(text.contains("checkpoint"), "{text}");
    }

    #[tokio::test]
    async fn shutdown_is_answered_before_the_server_ends() {
        let (mut server, client, finished, _) = serve_failed().await;
        let request = ShutdownRequest { now: true, ..Default::default() };
        let payload = request.write_to_bytes().unwrap();
        let ends = async {
            finished.notified().await;
            server.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(call(&client, TASK_V3, "Shutdown", payload), ends);
        assert_eq!(answer.0, Code::OK);
    }
}
