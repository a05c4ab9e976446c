//! Port-forwarding to a pod, as `kubectl port-forward` has it.

use super::pod::{OURS, Pod, crictl_command};
use super::same_on_both;
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

crate::cases!(
    crate::Scope::OneOrEach;
    a_port_is_forwarded_and_one_where_nobody_listens_is_reset,
);

/// Bytes that go there and back.
const SENT: usize = 1 << 20;

/// Connects to a port of the pod's by way of the CRI.
fn forwarded<T>(pod: &Pod, port: u16, mut talk: impl FnMut(TcpStream) -> Result<T>) -> Result<T> {
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let ports = format!("{}:{port}", local.port());
    let mut crictl = crictl_command(pod.context(), &["port-forward", &pod.id, &ports]);
    let forwarding = Running::start(&mut crictl, Vec::new())?;
    let mut connection = None;
    command::eventually("crictl listens", DEADLINE, || {
        connection = TcpStream::connect(local).ok();
        Ok(connection.is_some())
    })?;
    let connection = connection.context("a connection")?;
    connection.set_read_timeout(Some(DEADLINE))?;
    let said = talk(connection);
    forwarding.signal(Signal::SIGINT)?;
    forwarding.finish(DEADLINE)?;
    said
}

/// There and back, through the port on which somebody gives back what he is sent. The connection's end is told after
/// that: containerd gives what comes back a second from then on, and resets the connection.
fn echoed(mut connection: TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..SENT).map(|at| (at % 251) as u8).collect();
    let (mut there, bytes) = (connection.try_clone()?, sent.clone());
    let writing = std::thread::spawn(move || there.write_all(&bytes));
    let mut back = vec![0; SENT];
    connection.read_exact(&mut back)?;
    ensure!(back == sent, "what came back is not what was sent");
    writing.join().unwrap_or(Ok(()))?;
    Ok(connection.shutdown(Shutdown::Write)?)
}

fn a_port_is_forwarded_and_one_where_nobody_listens_is_reset(context: &Context) -> Result<()> {
    ports_are_forwarded(context, OURS)
}

/// On this handler as on runc's.
pub fn ports_are_forwarded(context: &Context, ours: &str) -> Result<()> {
    let said = same_on_both(context, ours, |pod| {
        let serve = "echo by IPv6 > /tmp/file; httpd -p [::1]:8081 -h /tmp; nc -ll -p 8080 -e cat";
        let container = pod.start(&["sh", "-c", serve], &Value::Null)?;
        container.await_line("netstat -ltn | grep -c -e :8080 -e :8081", "2")?;
        forwarded(pod, 8080, echoed)?;
        let page = forwarded(pod, 8081, |mut connection| {
            connection.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
            let mut page = String::new();
            connection.read_to_string(&mut page)?;
            Ok(page.lines().last().unwrap_or_default().to_owned())
        })?;
        let nobody = forwarded(pod, 8082, |mut connection| {
            connection.write_all(b"is anybody there?")?;
            // How a forwarder tells of it is its own affair; bytes there are none.
            Ok(connection.read(&mut [0]).unwrap_or_default())
        })?;
        Ok(format!("{page} {nobody}"))
    })?;
    ensure!(said == "by IPv6 0", "{said:?}");
    Ok(())
}
