//! containerd's own API (gRPC over HTTP/2), for what tests ask often and for what `ctr` doesn't tell: a `ctr` takes the
//! emulated lab a third of a second to start.

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use containerd_shim_protos::api::KillRequest;
use containerd_shim_protos::types::task::{Process, Status};
use http::{HeaderMap, Request};
use lab::containerd::Version;
use protobuf::{CodedInputStream, Message, rt};
use std::time::Duration;
use tokio::net::UnixStream;

/// Far beyond what an answer takes.
const DEADLINE: Duration = Duration::from_secs(150);

/// A call that containerd has answered with an error.
#[derive(Debug, thiserror::Error)]
#[error("{method}: {message} (code {code})")]
pub struct Refused {
    method: &'static str,
    /// gRPC's number for the kind of error.
    pub code: u32,
    message: String,
}

/// gRPC's number for what is not implemented.
pub const UNIMPLEMENTED: u32 = 12;

/// The ids of all containers.
pub fn containers(containerd: Version) -> Result<Vec<String>> {
    let answer = call(containerd, "containerd.services.containers.v1.Containers/List", &[])?;
    let id = |container: Vec<u8>| {
        let id = first_fields(&container)?.into_iter().next().context("a container has no id")?;
        Ok(String::from_utf8(id)?)
    };
    first_fields(&answer)?.into_iter().map(id).collect()
}

/// The ids of all tasks, and `RUNNING`, `STOPPED`, … as `ctr task ls` has it.
pub fn tasks(containerd: Version) -> Result<Vec<(String, String)>> {
    let answer = call(containerd, "containerd.services.tasks.v1.Tasks/List", &[])?;
    let told = |task: Vec<u8>| {
        let task = Process::parse_from_bytes(&task)?;
        Ok((task.id, format!("{:?}", task.status.enum_value_or(Status::UNKNOWN))))
    };
    first_fields(&answer)?.into_iter().map(told).collect()
}

/// Sends a signal to a task's first process.
pub fn kill(containerd: Version, id: &str, signal: u32) -> Result<()> {
    // The shim's message has the numbers of containerd's.
    let request = KillRequest { id: id.into(), signal, ..Default::default() };
    let request = request.write_to_bytes()?;
    call(containerd, "containerd.services.tasks.v1.Tasks/Kill", &request).map(drop)
}

/// Asks for a checkpoint of a task.
pub fn checkpoint(containerd: Version, id: &str) -> Result<()> {
    let request = KillRequest { id: id.into(), ..Default::default() }.write_to_bytes()?;
    call(containerd, "containerd.services.tasks.v1.Tasks/Checkpoint", &request).map(drop)
}

/// The values of a message's field 1, which is of text or messages.
fn first_fields(message: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut found = Vec::new();
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Field 1, of bytes.
        if tag == 1 << 3 | 2 {
            found.push(input.read_bytes()?);
        } else {
            rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(found)
}

/// Calls a method; what comes back is the encoded message.
fn call(containerd: Version, method: &'static str, message: &[u8]) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let address = containerd.address();
    let answer = async {
        tokio::time::timeout(DEADLINE, exchange(&address, method, message))
            .await
            .with_context(|| format!("no answer to {method}"))?
    };
    runtime.block_on(answer)
}

async fn exchange(address: &str, method: &'static str, message: &[u8]) -> Result<Vec<u8>> {
    let stream = UnixStream::connect(address).await.with_context(|| address.to_owned())?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://containerd/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("containerd-namespace", "default")
        .body(())?;
    let (response, mut body) = sender.ready().await?.send_request(request, false)?;
    body.send_data(framed(message), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut answer = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        answer.extend_from_slice(&chunk);
    }
    // An error without an answer comes in the head.
    let trailers = body.trailers().await?;
    outcome(method, trailers.as_ref().unwrap_or(&head.headers))?;
    if answer.len() < 5 {
        bail!("{method}: an answer of {} bytes", answer.len());
    }
    Ok(answer.split_off(5))
}

/// A message as gRPC sends it: uncompressed, its length, itself.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

fn outcome(method: &'static str, told: &HeaderMap) -> Result<()> {
    let text = |name| told.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let code = text("grpc-status").with_context(|| format!("{method}: no status"))?.parse()?;
    if code != 0 {
        let message = text("grpc-message").unwrap_or_default().into_owned();
        return Err(Refused { method, code, message }.into());
    }
    Ok(())
}
