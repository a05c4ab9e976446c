//! What containerd gives up while its server lives and still has it.
//!
//! At a start of its own, for one, containerd waits for each server for seconds only, calls `delete`, and forgets the task
//! with its bundle. Nobody else would end that, and a container that is started in its place must not meet it. So `delete`
//! tells the server, which ends what it still has of that id once the bundle has gone. Not before: a `delete` also follows
//! each task that has ended, and may come when its id is another task's already, which must live. containerd's connection
//! says nothing: it stays, and nobody uses it.

use crate::socket::is_served;
use crate::task::service::TaskService;
use anyhow::{Context as _, Result};
use async_trait::async_trait;
use containerd_shim_protos::api::DeleteRequest;
use protobuf::Message as _;
use sandbox::blocking;
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use ttrpc::asynchronous::{Client, MethodHandler, Service, TtrpcContext};
use ttrpc::{Code, Request, Response, get_status};

/// The service's name, which no other program calls, and its method's.
const SERVICE: &str = "kata_like.GivenUp";
const METHOD: &str = "Tell";

/// How long containerd may take from there to the end of the bundle: it asks its other servers first.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often that is looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells the server at this socket, if there is one, that containerd has given up what has this id.
///
/// # Errors
/// It does not answer in time.
pub fn tell(socket: &Path, id: &str, patience: Duration) -> Result<()> {
    // As after each task that has ended in the ordinary way.
    if !is_served(socket) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = async { timeout(patience, tell_now(socket, id)).await };
    runtime.block_on(told).context("the server does not answer")?
}

async fn tell_now(socket: &Path, id: &str) -> Result<()> {
    let client = Client::connect(&format!("unix://{}", socket.display())).await?;
    let payload = DeleteRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes()?;
    let request =
        Request { service: SERVICE.into(), method: METHOD.into(), payload, ..Default::default() };
    client.request(request).await.map(drop).context("tell the server")
}

/// The service, by its name; `bundle` is that of the server's sandbox.
pub fn service(task: Arc<TaskService>, bundle: PathBuf) -> HashMap<String, Service> {
    let handler: Box<dyn MethodHandler + Send + Sync> = Box::new(Tell { task, bundle });
    let methods = [(METHOD.to_owned(), handler)].into();
    [(SERVICE.to_owned(), Service { methods, streams: HashMap::new() })].into()
}

struct Tell {
    task: Arc<TaskService>,
    bundle: PathBuf,
}

#[async_trait]
impl MethodHandler for Tell {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        let status = match DeleteRequest::parse_from_bytes(&request.payload) {
            Ok(DeleteRequest { id, .. }) => {
                let task = self.task.clone();
                let bundle = task.bundle(&id).unwrap_or_else(|| self.bundle.clone());
                tokio::spawn(async move {
                    if goes(&bundle, PATIENCE, PAUSE).await {
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

/// Whether containerd has removed a bundle, or does so in that time.
async fn goes(bundle: &Path, patience: Duration, pause: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let looked_at = bundle.to_owned();
        match blocking("look at", bundle, move || Ok(has_gone(&looked_at))).await {
            Ok(true) => return true,
            _ if Instant::now() > end => return false,
            _ => tokio::time::sleep(pause).await,
        }
    }
}

/// containerd 1.7 leaves the bundle, and removes the directory that `work` in it leads to.
fn has_gone(bundle: &Path) -> bool {
    let is_there = |found: std::io::Result<_>| !matches!(found, Err(error) if error.kind() == ErrorKind::NotFound);
    let work = bundle.join("work");
    let leads_nowhere = fs::symlink_metadata(&work).is_ok() && !is_there(fs::metadata(&work));
    leads_nowhere || !is_there(fs::symlink_metadata(bundle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_given_up_when_its_bundle_goes_and_not_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, work) = (dir.path().join("bundle"), dir.path().join("work"));
        let short = Duration::from_millis(20);
        fs::create_dir(&bundle).unwrap();
        assert!(!goes(&bundle, short, short).await, "CRI-O's have no more");
        fs::create_dir(&work).unwrap();
        std::os::unix::fs::symlink(&work, bundle.join("work")).unwrap();
        assert!(!goes(&bundle, short, short).await);
        let waiting = goes(&bundle, short * 500, short);
        let (gone, ()) = tokio::join!(waiting, async {
            tokio::time::sleep(short * 2).await;
            fs::remove_dir(&work).unwrap();
        });
        assert!(gone);
        fs::remove_dir_all(&bundle).unwrap();
        assert!(goes(&bundle, short, short).await);
    }

    #[test]
    fn nobody_is_told_where_no_server_is_and_one_that_is_silent_is_no_such() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        tell(&socket, "c1", Duration::ZERO).unwrap();
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        tell(&socket, "c1", Duration::from_millis(50)).unwrap_err();
    }
}
