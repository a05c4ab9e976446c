//! Connections that the host forwards to a port of the guest's own localhost, as `kubectl port-forward` wants them.

use crate::io::streams;
use crate::io::transport::Stream;
use protocol::ports::{FORWARDED, ForwardPreamble};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::net::TcpStream;

/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;

/// Serves one connection to its end.
pub async fn serve(host: Stream) {
    let Some(preamble) = streams::preamble(&host).await else { return };
    let to = ForwardPreamble::from_bytes(preamble);
    match forward(&host, to).await {
        Ok(()) => {}
        // The host sees the stream's end, and what it sends is not read.
        Err(error) => tracing::debug!(%error, port = to.port, "a forwarded connection"),
    }
}

async fn forward(host: &Stream, to: ForwardPreamble) -> io::Result<()> {
    let guest = dial(to).await?;
    host.write_all(&[FORWARDED]).await?;
    tokio::try_join!(carry(host, &guest), carry(&guest, host)).map(drop)
}

/// A service may listen at one address of the two alone.
async fn dial(to: ForwardPreamble) -> io::Result<Stream> {
    let mut addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if to.v6_first {
        addresses.reverse();
    }
    let connected = match connect(addresses[0], to.port).await {
        Ok(connected) => connected,
        Err(error) => connect(addresses[1], to.port).await.map_err(|_| error)?,
    };
    Stream::new(connected.into_std()?.into())
}

async fn connect(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connected = TcpStream::connect((address, port)).await?;
    // Where nobody listens at a port that the kernel has just given this socket as its own, it has found itself.
    if connected.local_addr()?.port() == port {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(connected)
}

/// Carries bytes to the end of `from`, and then ends that direction of `to`.
pub(super) async fn carry(from: &Stream, to: &Stream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => break,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
    to.finish();
    Ok(())
}
