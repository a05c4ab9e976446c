//! What containerd gives up while its server lives and still has it.
//!
//! At a start of its own, for one, containerd waits for each server for seconds only, then forgets the task and calls
//! `delete`. Nobody else would end that, and a container that is started in its place must not meet it. In the ordinary
//! case the server knows of it no more by then, and there is nothing to do.

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::{DeleteRequest, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::sandbox_api::{SandboxStatusRequest, ShutdownSandboxRequest};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use std::path::Path;
use std::time::Duration;
use ttrpc::asynchronous::Client;
use ttrpc::{Code, context};

/// Between two tries to delete what does not end.
const PAUSE: Duration = Duration::from_millis(100);

/// Ends the task, or the sandbox API's sandbox, of this id, if the server at this socket still has it.
///
/// # Errors
/// It doesn't answer, or the task doesn't end, in so long.
pub fn end(socket: &Path, id: &str, patience: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = async { tokio::time::timeout(patience, end_now(socket, id, patience)).await };
    runtime.block_on(ended).context("the server does not answer")?
}

async fn end_now(socket: &Path, id: &str, patience: Duration) -> Result<()> {
    let Ok(client) = Client::connect(&format!("unix://{}", socket.display())).await else {
        // It has ended.
        return Ok(());
    };
    let context = || context::with_duration(patience);
    let task = TaskClient::new(client.clone());
    let id = id.to_owned();
    loop {
        let delete = DeleteRequest { id: id.clone(), ..Default::default() };
        match task.delete(context(), &delete).await {
            Ok(_) => {
                let request = ShutdownRequest { id, ..Default::default() };
                return task.shutdown(context(), &request).await.map(drop).context("shutdown");
            }
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => break,
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::FAILED_PRECONDITION => {}
            Err(error) => return Err(error).context("delete"),
        }
        let signal = libc::SIGKILL as u32;
        let kill = KillRequest { id: id.clone(), signal, all: true, ..Default::default() };
        // It may have ended by now.
        let _ = task.kill(context(), &kill).await;
        let wait = WaitRequest { id: id.clone(), ..Default::default() };
        let _ = task.wait(context(), &wait).await;
        tokio::time::sleep(PAUSE).await;
    }
    let sandbox = SandboxClient::new(client);
    let status = SandboxStatusRequest { sandbox_id: id.clone(), ..Default::default() };
    if sandbox.sandbox_status(context(), &status).await.is_ok() {
        let request = ShutdownSandboxRequest { sandbox_id: id, ..Default::default() };
        sandbox.shutdown_sandbox(context(), &request).await.context("shut the sandbox down")?;
    }
    Ok(())
}
