//! Port-forwarding to a pod, as `kubectl port-forward` has it.

use super::pod::{Pod, crictl_command};
use super::same_on_both;
use crate::command::{self, DEADLINE, Running};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

crate::cases!(
    crate::Scope::EachContainerd;
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

fn a_port_is_forwarded_and_one_where_nobody_listens_is_reset(context: &Context) -> Result<()> {
    same_on_both(context, |pod| {
        let listens = "nc -lk -s 127.0.0.1 -p 8080 -e cat & nc -lk -s ::1 -p 8081 -e cat & wait";
        let container = pod.start(&["sh", "-c", listens], &Value::Null)?;
        container.await_line("netstat -ltn | grep -c -e :8080 -e :8081", "2")?;
        let sent: Vec<u8> = (0..SENT).map(|at| (at % 251) as u8).collect();
        for port in [8080, 8081] {
            forwarded(pod, port, |mut connection| {
                let mut there = connection.try_clone()?;
                let bytes = sent.clone();
                let writing = std::thread::spawn(move || {
                    there.write_all(&bytes)?;
                    there.shutdown(Shutdown::Write)
                });
                let mut back = vec![0; SENT];
                connection.read_exact(&mut back).with_context(|| format!("port {port}"))?;
                ensure!(back == sent, "port {port}: what came back is not what was sent");
                Ok(writing.join().unwrap_or(Ok(()))?)
            })?;
        }
        let nobody = forwarded(pod, 8082, |mut connection| {
            connection.write_all(b"is anybody there?")?;
            // How a forwarder tells of it is its own affair; bytes there are none.
            Ok(connection.read(&mut [0]).unwrap_or_default())
        })?;
        ensure!(nobody == 0, "nobody listens, and something was said");
        container.sh("netstat -ltn | grep -c -e :8080 -e :8081")
    })
    .map(drop)
}
