//! What containerd gives up while its server lives and still has it.
//!
//! At a start of its own, for one, containerd waits for each server for seconds only, then forgets the task and calls
//! `delete`. Nobody else would end that, and a container that is started in its place must not meet it. So `delete` tells
//! the server, which ends what it still has of that id. Not at once, and not if containerd is connected: a `delete` also
//! follows each task that has ended, and may come when its id is another task's already, which must live.

use crate::task::service::TaskService;
use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use containerd_shim_protos::api::DeleteRequest;
use protobuf::Message as _;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use ttrpc::asynchronous::{Client, MethodHandler, Service, TtrpcContext};
use ttrpc::{Code, Request, Response, get_status};

/// The service's name, which no other program calls, and its method's.
const SERVICE: &str = "kata_like.GivenUp";
const METHOD: &str = "Tell";

/// For how long containerd has to be away then, and in which time after it was told.
const AWAY: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(30);

/// Tells the server at this socket, if there is one, that containerd has given up what has this id.
///
/// # Errors
/// It does not answer in time.
pub fn tell(socket: &Path, id: &str, patience: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = async { timeout(patience, tell_now(socket, id)).await };
    runtime.block_on(told).context("the server does not answer")?
}

async fn tell_now(socket: &Path, id: &str) -> Result<()> {
    let Ok(client) = Client::connect(&format!("unix://{}", socket.display())).await else {
        // It has ended.
        return Ok(());
    };
    let payload = DeleteRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes()?;
    let request =
        Request { service: SERVICE.into(), method: METHOD.into(), payload, ..Default::default() };
    match client.request(request).await {
        // One of an older version has no such service.
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::UNIMPLEMENTED => Ok(()),
        Err(error) => bail!("tell the server: {error}"),
    }
}

/// The service, by its name; `connected` says how many are.
pub fn service(
    task: Arc<TaskService>,
    connected: watch::Receiver<usize>,
) -> HashMap<String, Service> {
    let handler: Box<dyn MethodHandler + Send + Sync> = Box::new(Tell { task, connected });
    let methods = [(METHOD.to_owned(), handler)].into();
    [(SERVICE.to_owned(), Service { methods, streams: HashMap::new() })].into()
}

struct Tell {
    task: Arc<TaskService>,
    connected: watch::Receiver<usize>,
}

#[async_trait]
impl MethodHandler for Tell {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        let status = match DeleteRequest::parse_from_bytes(&request.payload) {
            Ok(DeleteRequest { id, .. }) => {
                let (task, connected) = (self.task.clone(), self.connected.clone());
                tokio::spawn(async move {
                    if is_away(connected, AWAY, WITHIN).await {
                        task.give_up(&id).await;
                    }
                });
                get_status(Code::OK, "")
            }
            Err(error) => get_status(Code::INVALID_ARGUMENT, error),
        };
        response.set_status(status);
        Ok(response)
    }
}

/// Whether nobody is connected for so long without a break, which begins within that time.
async fn is_away(mut connected: watch::Receiver<usize>, away: Duration, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        if !matches!(timeout_at(end, connected.wait_for(|count| *count == 0)).await, Ok(Ok(_))) {
            return false;
        }
        match timeout(away, connected.wait_for(|count| *count > 0)).await {
            Err(_) => return true,
            // The server is ending.
            Ok(Err(_)) => return false,
            Ok(Ok(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn who_is_connected_or_comes_back_has_given_nothing_up() {
        let away = |count: &watch::Sender<usize>| is_away(count.subscribe(), SHORT, SHORT * 4);
        let (count, _) = watch::channel(1);
        assert!(!away(&count).await, "connected all the time");
        count.send_replace(0);
        assert!(away(&count).await);
        // Gone for a moment, and then for good.
        let (back, _) = tokio::join!(away(&count), async {
            tokio::time::sleep(SHORT / 2).await;
            count.send_replace(1);
        });
        assert!(!back);
        let (gone, _) = tokio::join!(away(&count), async {
            tokio::time::sleep(SHORT / 2).await;
            count.send_replace(0);
        });
        assert!(gone);
    }

    #[tokio::test]
    async fn nobody_is_told_where_no_server_is() {
        tell_now(Path::new("/nowhere/s"), "c1").await.unwrap();
    }
}
