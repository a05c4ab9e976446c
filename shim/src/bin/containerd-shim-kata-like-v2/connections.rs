//! How many are connected to the server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;

/// What the server is to listen to, and how many are connected to it at any time.
pub fn counted(listener: UnixListener) -> (Listener, watch::Receiver<usize>) {
    let (count, counts) = watch::channel(0);
    let connections = async_stream::stream! {
        loop {
            yield listener.accept().await.map(|(stream, _)| Connection::new(stream, &count));
        }
    };
    (Listener::new(connections), counts)
}

/// One that counts until it is dropped.
struct Connection {
    stream: UnixStream,
    count: watch::Sender<usize>,
}

impl Connection {
    fn new(stream: UnixStream, count: &watch::Sender<usize>) -> Self {
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

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
