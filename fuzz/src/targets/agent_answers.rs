//! What the agent answers, as the shim's client reads it: broken frames, frames of other calls, answers of any
//! content. Reaches the result of every call, and the figures that containerd gets.

use crate::choices::Choices;
use crate::metrics;
use sandbox::agent::{Agent, InGuest, StreamNumbers};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

/// Most calls of one input.
const CALLS: u32 = 32;
/// A frame's header: length and stream in network order, type, flags.
const HEADER: usize = 10;
const RESPONSE: u8 = 2;

/// Takes one input.
pub fn take(data: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(talk(Choices::new(data)));
}

async fn talk(mut input: Choices<'_>) {
    let (ours, mut guest) = UnixStream::pair().expect("a socket pair");
    let agent = Agent::new(ours);
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        if input.is_empty() {
            break;
        }
        calls.spawn(call(agent.clone(), input.byte()));
        // The guest has seen the request before it answers; the client may have closed the stream.
        let mut header = [0; HEADER];
        if guest.read_exact(&mut header).await.is_err() {
            break;
        }
        let [a, b, c, d, ..] = header;
        let mut request = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        guest.read_exact(&mut request).await.expect("a whole request");
        let answer = answer(number, &mut input);
        let _ = guest.write_all(&answer).await;
        tokio::task::yield_now().await;
    }
    let _ = guest.shutdown().await;
    let all = async { while calls.join_next().await.transpose().expect("no panic").is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), all).await.expect("a call outlives its guest");
}

/// What the guest writes after request `number`.
fn answer(number: u32, input: &mut Choices<'_>) -> Vec<u8> {
    let (form, len) = (input.byte(), usize::from(input.u16() % 2048));
    let content = input.bytes(len);
    // Streams of a client have odd numbers.
    let stream = if form & 8 == 0 { 2 * number + 1 } else { input.byte().into() };
    let body = match form & 3 {
        0 => return content.to_vec(),
        1 => content.to_vec(),
        // The answer's own message, field 2; or a status, field 1, of code (1) and message (2).
        2 => field(2, content),
        _ => field(1, &[&[8, form >> 4][..], &field(2, content)].concat()),
    };
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([RESPONSE, 0]);
    frame.extend(body);
    frame
}

/// A field of a protobuf message that has a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut field = vec![number << 3 | 2, len as u8 | 0x80, (len >> 7) as u8];
    field.extend(content);
    field
}

async fn call(agent: Agent, which: u8) -> Option<()> {
    let streams = StreamNumbers::default();
    match which % 17 {
        0 => agent.setup_sandbox("host", "shared").await.ok(),
        1 => agent
            .create_container("id", Vec::new(), streams, InGuest::default())
            .await
            .ok()
            .map(drop),
        2 => agent.start_container("id").await.ok(),
        3 => agent.exec("id", "exec", (Vec::new(), String::new()), streams).await.ok().map(drop),
        4 => agent.signal("id", "", 9, true).await.ok(),
        5 => {
            let (status, _) = agent.wait("id", "").await.ok()?;
            assert!(status <= 255);
            Some(())
        }
        6 => agent.wait_out_of_memory("id", 0).await.ok().map(drop),
        7 => agent.processes("id").await.ok().map(drop),
        8 => agent.pause("id").await.ok(),
        9 => agent.resume("id").await.ok(),
        10 => agent.update("id", Vec::new()).await.ok(),
        11 => {
            let used = agent.stats("id").await.ok()?;
            metrics::for_this_host(&used).ok().map(drop)
        }
        12 => agent.resize("id", "", 80, 25).await.ok(),
        13 => agent.delete_exec("id", "exec").await.ok(),
        14 => agent.delete_container("id", true).await.ok(),
        15 => agent.shutdown(Duration::from_secs(1)).await.ok(),
        _ => agent.exec("", "", (Vec::new(), String::new()), streams).await.ok().map(drop),
    }
}
