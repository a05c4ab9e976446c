//! Standard streams between the host and processes.
//!
//! The host numbers its streams, and may connect one before or after it asks for the process.
//! [`Streams`] brings the two together; [`carry_out`] and [`carry_in`] move the bytes, losing none:
//! output is read to its end and then the stream is half-closed; input is written out before the
//! process sees its end.

use crate::io::transport::{self, Stream};
use protocol::ports::StreamPreamble;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Most streams that have been connected and are not yet, or never, asked for.
const MAX_UNCLAIMED: usize = 256;

/// A connection that has not named its stream by then is dropped.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the host has to close a stream after its end; a close before that could overtake data.
const LINGER: Duration = Duration::from_secs(10);

/// Bytes moved at once.
const CHUNK: usize = 256 * 1024;

/// Brings streams and processes together by number.
#[derive(Debug, Default)]
pub struct Streams {
    slots: Mutex<HashMap<u64, Slot>>,
}

#[derive(Debug)]
enum Slot {
    Connected(Stream),
    Wanted(oneshot::Sender<Stream>),
}

impl Streams {
    /// The stream of that number, when the host has connected it. Ends without one when
    /// [`Streams::forget`] is called.
    pub fn take(&self, number: u64) -> oneshot::Receiver<Stream> {
        let (sender, receiver) = oneshot::channel();
        let mut slots = self.lock();
        match slots.remove(&number) {
            Some(Slot::Connected(stream)) => {
                // The receiver is here, so this cannot fail.
                let _ = sender.send(stream);
            }
            Some(Slot::Wanted(_)) | None => {
                slots.insert(number, Slot::Wanted(sender));
            }
        }
        receiver
    }

    /// Gives up on a stream: nobody waits for it any more, and it is closed if it is there.
    pub fn forget(&self, number: u64) {
        self.lock().remove(&number);
    }

    fn connected(&self, number: u64, stream: Stream) {
        let mut slots = self.lock();
        match slots.remove(&number) {
            Some(Slot::Wanted(process)) => {
                // The process has ended meanwhile: the stream is dropped and so closed.
                let _ = process.send(stream);
            }
            Some(Slot::Connected(_)) => tracing::warn!(number, "stream connected twice"),
            None => {
                let unclaimed = slots.values().filter(|s| matches!(s, Slot::Connected(_))).count();
                if unclaimed < MAX_UNCLAIMED {
                    slots.insert(number, Slot::Connected(stream));
                } else {
                    tracing::warn!(number, "too many unclaimed streams");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts streams for ever, each of which `serve` gets.
pub async fn accept<F>(listener: OwnedFd, serve: impl Fn(Stream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = match transport::pollable(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no streams"),
    };
    loop {
        match transport::accept(&listener).await {
            Ok(stream) => {
                tokio::spawn(serve(stream));
            }
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, and may be closed meanwhile.
                tracing::warn!(%error, "accepting a stream");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Accepts numbered streams for ever.
pub async fn accept_numbered(listener: OwnedFd, streams: Arc<Streams>) {
    accept(listener, move |stream| introduce(stream, Arc::clone(&streams))).await;
}

async fn introduce(stream: Stream, streams: Arc<Streams>) {
    if let Some(preamble) = preamble::<{ StreamPreamble::LEN }>(&stream).await {
        streams.connected(StreamPreamble::from_bytes(preamble).0, stream);
    }
}

/// The bytes with which the host begins a stream, if it does.
pub async fn preamble<const LEN: usize>(stream: &Stream) -> Option<[u8; LEN]> {
    let mut preamble = [0; LEN];
    match timeout(PREAMBLE_TIMEOUT, stream.read_exact(&mut preamble)).await {
        Ok(Ok(())) => return Some(preamble),
        Ok(Err(error)) => tracing::warn!(%error, "a stream ended before it said what it is"),
        Err(_) => tracing::warn!("a stream did not say what it is"),
    }
    None
}

/// Carries a process's output to the host until its end.
pub async fn carry_out(output: OwnedFd, stream: oneshot::Receiver<Stream>) {
    let Ok(stream) = stream.await else { return };
    let Ok(output) = transport::pollable(output) else { return };
    match pump_out(&output, &stream).await {
        Ok(()) => {
            drop(output);
            stream.finish();
            let _ = timeout(LINGER, wait_for_close(&stream)).await;
        }
        // The host has closed the stream: so does this, and the process gets SIGPIPE.
        Err(error) => tracing::debug!(%error, "output stream"),
    }
}

async fn pump_out(output: &AsyncFd<OwnedFd>, stream: &Stream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match transport::read(output, &mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(&buffer[..length]).await?,
            // A terminal's master says so when the last process has closed its side.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn wait_for_close(stream: &Stream) {
    let mut buffer = [0; 512];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

/// Carries the host's input to a process. At the end of a pipe's input the process sees its end;
/// a terminal has no such end.
pub async fn carry_in(input: OwnedFd, stream: oneshot::Receiver<Stream>) {
    let Ok(stream) = stream.await else { return };
    let Ok(input) = transport::pollable(input) else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => {
                if let Err(error) = write_all(&input, &buffer[..length]).await {
                    return tracing::debug!(%error, "the process has closed its input");
                }
            }
            Err(error) => return tracing::debug!(%error, "input stream"),
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = fd
            .async_io(tokio::io::Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?))
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::transport::Transport;
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixStream};

    /// An agent's end that accepts, and what connects to it.
    fn listening(name: &str) -> (Arc<Streams>, impl Fn(u64) -> UnixStream + use<>) {
        let name = format!("kata-like-streams-{name}-{}", std::process::id());
        let listener = Transport::Unix(name.clone()).listen(1).unwrap();
        let streams = Arc::new(Streams::default());
        tokio::spawn(accept_numbered(listener, Arc::clone(&streams)));
        let connect = move |number: u64| {
            let address = SocketAddr::from_abstract_name(format!("{name}-1")).unwrap();
            let mut stream = UnixStream::connect_addr(&address).unwrap();
            stream.write_all(&StreamPreamble(number).to_bytes()).unwrap();
            stream
        };
        (streams, connect)
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
        nix::unistd::pipe2(flags).unwrap()
    }

    async fn read_all(mut stream: UnixStream) -> Vec<u8> {
        tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_stream_is_found_whichever_comes_first() {
        let (streams, connect) = listening("order");
        let wanted = streams.take(1);
        let _early = connect(1);
        wanted.await.unwrap();
        let _late = connect(2);
        tokio::time::sleep(Duration::from_millis(50)).await;
        streams.take(2).await.unwrap();
    }

    #[tokio::test]
    async fn output_arrives_whole_before_the_end_however_slow_the_reader() {
        let (streams, connect) = listening("output");
        let (reader, writer) = pipe();
        let carrying = tokio::spawn(carry_out(reader, streams.take(1)));
        let host = connect(1);
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let sent = data.clone();
        let writer = transport::pollable(writer).unwrap();
        tokio::spawn(async move { write_all(&writer, &sent).await.unwrap() });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(read_all(host).await == data);
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_input_reaches_the_process_after_the_data() {
        let (streams, connect) = listening("input");
        let (reader, writer) = pipe();
        let carrying = tokio::spawn(carry_in(writer, streams.take(1)));
        let mut host = connect(1);
        host.write_all(b"all of it").unwrap();
        drop(host);
        carrying.await.unwrap();
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
    }

    #[tokio::test]
    async fn a_forgotten_stream_ends_the_wait_and_closes_what_came() {
        let (streams, connect) = listening("forget");
        let wanted = streams.take(1);
        streams.forget(1);
        assert!(wanted.await.is_err());
        let host = connect(2);
        let noted = async {
            while !streams.lock().contains_key(&2) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), noted).await.unwrap();
        streams.forget(2);
        assert!(read_all(host).await.is_empty());
    }
}
