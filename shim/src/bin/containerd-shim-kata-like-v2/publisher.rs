//! Events to containerd: in order, each until it has been taken, also over a restart of containerd. CRI-O takes none.

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;
use std::time::{Duration, SystemTime};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

/// How long containerd may take to take one event.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses between attempts while containerd is away: from the first to the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// An event in containerd's terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    topic: &'static str,
    event: Any,
    at: SystemTime,
}

impl Notice {
    /// Wraps `event` for `topic`, as of now.
    pub fn new<M: MessageFull>(topic: &'static str, event: &M) -> Self {
        let event = Any {
            type_url: M::descriptor().full_name().into(),
            // Encoding to memory fails for messages over 2 GiB only.
            value: event.write_to_bytes().unwrap_or_default(),
            ..Default::default()
        };
        Self { topic, event, at: SystemTime::now() }
    }
}

/// Sends events until `queue` is closed and empty.
pub struct Publisher {
    /// containerd's ttrpc address; empty: nobody takes events.
    pub address: String,
    /// containerd's namespace.
    pub namespace: String,
}

impl Publisher {
    /// Runs until `queue` is closed and empty.
    pub async fn run(self, mut queue: mpsc::UnboundedReceiver<Notice>) {
        if self.address.is_empty() {
            while queue.recv().await.is_some() {}
            return;
        }
        let mut client = None;
        while let Some(message) = queue.recv().await {
            let request = self.request(message);
            let mut pause = PAUSES[0];
            while !self.attempt(&mut client, &request).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES[1]);
            }
        }
    }

    fn request(&self, message: Notice) -> ForwardRequest {
        let envelope = Envelope {
            timestamp: Some(crate::task::timestamp(message.at)).into(),
            namespace: self.namespace.clone(),
            topic: message.topic.into(),
            event: Some(message.event).into(),
            ..Default::default()
        };
        ForwardRequest { envelope: Some(envelope).into(), ..Default::default() }
    }

    /// One attempt over the connection there is, or a new one. Gives whether the event is done with.
    async fn attempt(&self, client: &mut Option<EventsClient>, request: &ForwardRequest) -> bool {
        if client.is_none() {
            *client = self.connect().await;
        }
        let Some(connected) = client else { return false };
        match connected.forward(context::with_duration(FORWARD_TIMEOUT), request).await {
            Ok(_) => true,
            Err(ttrpc::Error::RpcStatus(status))
                if status.code() != ttrpc::Code::DEADLINE_EXCEEDED =>
            {
                // It was read and refused: to repeat it would hold up all that follow.
                tracing::error!("event {} refused: {}", request.envelope.topic, status.message);
                true
            }
            Err(error) => {
                tracing::warn!("event {}: {error}; will be repeated", request.envelope.topic);
                *client = None;
                false
            }
        }
    }

    async fn connect(&self) -> Option<EventsClient> {
        let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
        let stream = UnixStream::connect(path).await.ok()?;
        Some(EventsClient::new(Client::new(Socket::from(stream))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::events::task::{TaskExit, TaskStart};
    use containerd_shim_protos::shim_async::{Events, create_events};
    use std::path::Path;
    use std::sync::Arc;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    struct Collector(mpsc::UnboundedSender<String>);

    #[async_trait::async_trait]
    impl Events for Collector {
        async fn forward(&self, _: &TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.send(format!("{} {}", req.envelope.topic, req.envelope.namespace)).unwrap();
            Ok(Empty::new())
        }
    }

    async fn containerd(path: &Path) -> (Server, mpsc::UnboundedReceiver<String>) {
        let (sender, seen) = mpsc::unbounded_channel();
        let services = create_events(Arc::new(Collector(sender)));
        let address = format!("unix://{}", path.display());
        let mut server = Server::new().bind(&address).unwrap().register_service(services);
        server.start().await.unwrap();
        (server, seen)
    }

    #[tokio::test]
    async fn events_outlive_a_restart_of_containerd_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (queue, receiver) = mpsc::unbounded_channel();
        let publisher = Publisher { address: path.display().to_string(), namespace: "ns".into() };
        let publishing = tokio::spawn(publisher.run(receiver));
        let (mut server, mut seen) = containerd(&path).await;
        queue.send(Notice::new("/tasks/create", &TaskStart::new())).unwrap();
        assert_eq!(seen.recv().await.unwrap(), "/tasks/create ns");
        server.shutdown().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        queue.send(Notice::new("/tasks/start", &TaskStart::new())).unwrap();
        queue.send(Notice::new("/tasks/exit", &TaskExit::new())).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (_server, mut seen) = containerd(&path).await;
        assert_eq!(seen.recv().await.unwrap(), "/tasks/start ns");
        assert_eq!(seen.recv().await.unwrap(), "/tasks/exit ns");
        drop(queue);
        publishing.await.unwrap();
        assert!(seen.try_recv().is_err());
    }

    #[tokio::test]
    async fn where_nobody_takes_events_none_is_kept() {
        let (queue, receiver) = mpsc::unbounded_channel();
        let publisher = Publisher { address: String::new(), namespace: "ns".into() };
        let publishing = tokio::spawn(publisher.run(receiver));
        for _ in 0..1000 {
            queue.send(Notice::new("/tasks/start", &TaskStart::new())).unwrap();
        }
        drop(queue);
        tokio::time::timeout(Duration::from_secs(20), publishing).await.unwrap().unwrap();
    }

    #[test]
    fn the_type_is_named_as_containerd_does() {
        let message = Notice::new("/tasks/exit", &TaskExit::new());
        assert_eq!(message.event.type_url, "containerd.events.TaskExit");
    }
}
