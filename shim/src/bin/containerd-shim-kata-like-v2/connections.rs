//! How many are connected to the server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf, join};
use tokio::net::UnixListener;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;

/// How long to wait when a connection can't be had: the server asks for the next one at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What the server is to listen to, and how many are connected to it at any time.
pub fn counted(listener: UnixListener) -> (Listener, watch::Receiver<usize>) {
    let (count, counts) = watch::channel(0);
    let connections = async_stream::stream! {
        loop {
            let accepted = accepted(async || listener.accept().await).await;
            yield accepted.map(|(stream, _)| {
                let (read, written) = stream.into_split();
                join(Connection::new(read, &count), written)
            });
        }
    };
    (Listener::new(connections), counts)
}

/// What `accept` gives; an error, of a process without descriptors say, not at once.
async fn accepted<T>(accept: impl AsyncFnOnce() -> io::Result<T>) -> io::Result<T> {
    let accepted = accept().await;
    if accepted.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
    accepted
}

/// What is read of one, which counts until it is dropped.
struct Connection {
    stream: OwnedReadHalf,
    count: watch::Sender<usize>,
}

impl Connection {
    fn new(stream: OwnedReadHalf, count: &watch::Sender<usize>) -> Self {
        count.send_modify(|n| *n += 1);
        Self { stream, count: count.clone() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count.send_modify(|n| *n -= 1);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_without_descriptors_does_not_ask_for_ever() {
        let begin = tokio::time::Instant::now();
        for _ in 0..3 {
            let full = io::Error::from_raw_os_error(libc::EMFILE);
            accepted(async || Err::<(), _>(full)).await.unwrap_err();
        }
        assert_eq!(begin.elapsed(), PAUSE * 3);
        accepted(async || Ok(())).await.unwrap();
        assert_eq!(begin.elapsed(), PAUSE * 3);
    }
}
